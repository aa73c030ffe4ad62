"""The compiled kernels inside PyTorch (:mod:`.torch`) and JAX (:mod:`.jax`), each in its extra."""
