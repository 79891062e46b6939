"""The experts of a Mixture-of-Experts layer: their parameters, and the backends that compute them."""

from toolkit.layers.experts.activations import ACTIVATIONS, Activation
from toolkit.layers.experts.experts import BACKENDS, Experts
from toolkit.layers.experts.weights import Weights

__all__ = ["ACTIVATIONS", "BACKENDS", "Activation", "Experts", "Weights"]
