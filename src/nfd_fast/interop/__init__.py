"""The compiled kernels inside PyTorch (:mod:`.torch`) and JAX (:mod:`.jax`), each in its extra."""

NO_SECOND_DERIVATIVES = (
    "residual_stack must be differentiated once, got a derivative of its derivatives; for second "
    "derivatives write the layers out in the framework"
)
