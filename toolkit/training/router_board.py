"""What TensorBoard shows of a router: its figures as curves, its loads and pairs as images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from toolkit.layers import DepthStats, MoE
from toolkit.routing import RoutingStats

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def bias_range(moe: MoE) -> dict[str, float]:
    """How far a balancer's biases are apart; empty where there is none."""
    balancer = getattr(moe.router, "balancer", None)
    return {} if balancer is None else {"bias_range": float(balancer.bias.max() - balancer.bias.min())}


def figures(stats: RoutingStats, spread: Mapping[str, float]) -> dict[str, float]:
    """Tag and value of every curve of one layer, with its :func:`bias_range`; those by expert last."""
    by_expert = {
        f"{name}/expert{expert}": share
        for name, shares in (("load", stats.load), ("importance", stats.importance))
        for expert, share in enumerate(shares.tolist())
    }
    return {
        "token_entropy": stats.entropy,
        "marginal_entropy": stats.marginal_entropy,
        "mutual_information": stats.mutual_information,
        "max_violation": stats.max_violation,
        "min_load": stats.min_load,
        "load_variation": stats.load_variation,
        "dead_experts": stats.dead,
        "dropped_share": stats.dropped,
        "gate_mass": stats.gate_mass,
        "logit_rms": stats.logit_rms,
        "logit_max": float(stats.logit_max),
        "non_finite": float(stats.non_finite),
        "tokens": float(stats.tokens),
        **spread,
        **by_expert,
    }


def depth_figures(stats: DepthStats, suffix: str = "") -> dict[str, float]:
    """Tag, with the suffix behind, and value of every curve of one mixture-of-depths layer."""
    shares = {"selected": stats.selected, "predicted": stats.predicted, "accuracy": stats.accuracy}
    return {f"depth_{name}{suffix}": share for name, share in shares.items()}


def write(writer: SummaryWriter, layer: str, values: dict[str, float], step: int) -> None:
    """Add a point to each of a layer's curves, ``router/<layer>/<tag>``."""
    for tag, value in values.items():
        writer.add_scalar(f"router/{layer}/{tag}", value, step)


def write_mean(writer: SummaryWriter, tag: str, values: Sequence[float], step: int) -> None:
    """Add a point to the curve of the layers' mean, ``router/<tag>``, over those that have a value; none if none."""
    known = [value for value in values if not math.isnan(value)]
    if known:
        writer.add_scalar(f"router/{tag}", fmean(known), step)


def draw_load(writer: SummaryWriter, layer: str, load: np.ndarray, step: int) -> None:
    """load (records, num_experts) -> a heat map, experts x time: balance grey, twice its share white."""
    image = np.clip(load.T * load.shape[1] / 2, 0, 1)
    writer.add_image(f"router/{layer}/load_heat_map", np.kron(image, np.ones((8, 4)))[None], step)


def draw_pairs(writer: SummaryWriter, layer: str, together: Tensor, step: int) -> None:
    """together (num_experts, num_experts), tokens that chose both -> a heat map: row i is P(j chosen, given i)."""
    pairs = together.numpy()
    image = pairs / np.clip(np.diagonal(pairs), 1, None)[:, None]
    size = max(1, min(8, 512 // len(image)))
    writer.add_image(f"router/{layer}/co_selection", np.kron(image, np.ones((size, size)))[None], step)
