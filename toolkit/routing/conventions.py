"""The value other libraries' load balancing losses would have shown, from our statistics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from toolkit.checks import require, require_choice
from toolkit.routing.statistics import RoutingStats

CONVENTIONS = ("toolkit", "megatron", "olmo", "megablocks", "hugging_face")


def balance_value(layers: Sequence[RoutingStats], convention: str = "toolkit") -> float:
    """What a load balancing loss with coefficient 1 over these layers' tokens is in a library's convention.

    With f_i the share of choices (sum 1) and P_i the mean probability of expert i of E, top_k chosen by each token:

    ================  ==============================================================  ==================
    convention        value                                                           at perfect balance
    ================  ==============================================================  ==================
    ``toolkit``       mean over layers of E sum_i f_i P_i                             1
    ``megatron``      the same (Megatron-Core ``switch_load_balancing_loss_func``)    1
    ``olmo``          the same (OLMo-core ``load_balancing_loss``)                    1
    ``megablocks``    the same (MegaBlocks ``batched_load_balancing_loss``)           1
    ``hugging_face``  top_k * E sum_i mean(f_i) mean(P_i), means over layers taken    top_k
                      before the product (``load_balancing_loss_func``)
    ================  ==============================================================  ==================

    Pooling layers before the product hides a collapse: two layers that send everything to opposite experts look
    balanced. OLMo, Megatron and MegaBlocks differ in where they divide, not in what they get.

    Args:
        layers: the statistics of each layer over the same tokens.
        convention: whose value.

    Raises:
        ValueError: if there are no layers, the convention is unknown, or, for ``"hugging_face"``, layers differ in
            how many experts they have.
    """
    require(len(layers) > 0, "layers", layers, "the statistics of one layer or more")
    require_choice("convention", convention, CONVENTIONS)
    if convention != "hugging_face":
        return sum(_balance(layer.load, layer.importance) for layer in layers) / len(layers)
    experts = sorted({len(layer.load) for layer in layers})
    require(len(experts) == 1, "layers", f"of {experts} experts", "of as many experts each, to be pooled")
    pooled = reduce(add, layers)
    top_k = float(pooled.counts.sum() / pooled.tokens.clamp(min=1.0))
    return top_k * _balance(pooled.load, pooled.importance)


def _balance(load: Tensor, importance: Tensor) -> float:
    return float(len(load) * torch.dot(load, importance))
