"""The mathematics of ``nfd_fast`` in slow, readable NumPy: the specification of every kernel.

Names, arguments and shapes are those of :mod:`nfd_fast.kernels`, :func:`nfd_fast.initial_weights`
and :func:`nfd_fast.train`, without the ones that only make things fast (``out``, ``threads``,
``device``, ``engine``). Nothing here calls compiled code, and nothing here is ever changed to agree
with it.

===================  ===========================================================================
``noise``            Philox4x32-10, noise words, normals, refinement in depth (DESIGN §4)
``activations``      φ and φ'
``losses``           mean squared error and cross entropy
``conditional``      training without the initial matrices, column by column (DESIGN §2)
``euler_maruyama``   the conditional representation: one layer, or a first pass (DESIGN §2)
``network``          weights at initialisation, forward and backward pass, SGD (DESIGN §1)
``observables``      what a run can record (DESIGN §5)
``theory``           moments and kernels at infinite width (DESIGN §3.1)
``training``         the loop
===================  ===========================================================================
"""

from nfd_fast.reference.activations import ACTIVATIONS, activation, activation_derivative
from nfd_fast.reference.conditional import ConditionalMatrix, ConditionalRun, train_conditional
from nfd_fast.reference.losses import LOSSES, cross_entropy, mse
from nfd_fast.reference.network import (
    backward_pass,
    forward_pass,
    hidden_gradient,
    initial_weights,
    residual_backward,
    residual_forward,
    sgd_update,
    updated_weights,
)
from nfd_fast.reference.noise import STREAMS, box_muller, layer_normal, normal, philox, words
from nfd_fast.reference.observables import (
    adjoint_kernels,
    feature_kernels,
    feature_movement,
    min_eigenvalues,
)
from nfd_fast.reference.particles import euler_maruyama, euler_maruyama_step
from nfd_fast.reference.theory import gaussian_moments, initial_kernels
from nfd_fast.reference.training import train

__all__ = [
    "ACTIVATIONS",
    "LOSSES",
    "STREAMS",
    "ConditionalMatrix",
    "ConditionalRun",
    "activation",
    "activation_derivative",
    "adjoint_kernels",
    "backward_pass",
    "box_muller",
    "cross_entropy",
    "euler_maruyama",
    "euler_maruyama_step",
    "feature_kernels",
    "feature_movement",
    "forward_pass",
    "gaussian_moments",
    "hidden_gradient",
    "initial_kernels",
    "initial_weights",
    "layer_normal",
    "min_eigenvalues",
    "mse",
    "normal",
    "philox",
    "residual_backward",
    "residual_forward",
    "sgd_update",
    "train",
    "train_conditional",
    "updated_weights",
    "words",
]
