"""A research toolkit for Mixture-of-Experts and long-context transformers.

Its question is whether sparsity pays at equal compute, so every sparse choice is an object that
knows what it computes, what it costs and how healthy it is. The rooms, from the ground up
(imports run downward only):

    attention, routing -> layers -> models -> parallel -> compute -> data -> training -> scaling
"""

__version__ = "0.1.0"
