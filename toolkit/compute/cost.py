"""What a decoder costs: its parameters by kind, and its FLOPs per token in named conventions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from toolkit.checks import require_positive
from toolkit.layers import MixtureOfDepths, MoE
from toolkit.models import Decoder, DecoderConfig
from toolkit.work import BACKWARD, Work

CONVENTIONS = ("exact", "palm", "hardware", "full_square")

KINDS = ("embedding", "head", "attention", "feed_forward", "experts", "shared_experts", "router", "norms")


@dataclass(frozen=True)
class Cost:
    """Parameters and FLOPs of a decoder at one sequence length.

    Attributes:
        seq_len: tokens in a sequence.
        parameters: how many of each kind (``KINDS``); a tied head counts once, as the embedding.
        active_parameters: those that one token uses on average: of the routed experts, top_k; of a layer that only
            some tokens go through, their share.
        work: every product of a forward over one sequence.
    """

    seq_len: int
    parameters: dict[str, int]
    active_parameters: dict[str, int]
    work: tuple[Work, ...]

    @property
    def total_parameters(self) -> int:
        """Every parameter."""
        return sum(self.parameters.values())

    @property
    def total_active_parameters(self) -> int:
        """Every parameter that one token uses."""
        return sum(self.active_parameters.values())

    @property
    def forward_flops(self) -> dict[str, float]:
        """FLOPs per token of a forward, by convention; 2 for each multiply-add.

        ``exact``: products only, over visible pairs, router and chosen experts included.
        ``full_square``: the same had every (query, key) pair been computed.
        ``hardware``: what the kernels run: whole tiles of 128 queries by 64 keys.
        ``palm``: 2 N + 4 L H Q T with N the active parameters (Chowdhery et al. 2022, arXiv 2204.02311,
        appendix B): full square, every parameter taken for a product.
        """
        needed, square, computed = (
            sum(getattr(part, name) for part in self.work) for name in ("needed", "square", "computed")
        )
        palm = self.total_active_parameters + self._square_scores / self.seq_len
        return {
            "exact": 2 * needed / self.seq_len,
            "palm": 2 * palm,
            "hardware": 2 * computed / self.seq_len,
            "full_square": 2 * square / self.seq_len,
        }

    @property
    def training_flops(self) -> dict[str, float]:
        """FLOPs per token of a forward and backward, by convention.

        Backward is twice the forward where there is one, but in ``hardware``, which counts recomputation as
        it is run.
        """
        needed = sum((1 + part.backward) * part.needed for part in self.work)
        square = sum((1 + part.backward) * part.square for part in self.work)
        computed = sum((1 + part.computed_backward) * part.computed for part in self.work)
        return {
            "exact": 2 * needed / self.seq_len,
            "palm": (1 + BACKWARD) * self.forward_flops["palm"],
            "hardware": 2 * computed / self.seq_len,
            "full_square": 2 * square / self.seq_len,
        }

    @property
    def _square_scores(self) -> int:
        return sum(part.square for part in self.work if part.kind == "scores")


@lru_cache(maxsize=1024)
def cost(config: DecoderConfig, seq_len: int) -> Cost:
    """What the decoder of ``config`` costs on sequences of ``seq_len`` tokens.

    The model is built on the meta device and asked, layer by layer, so the count cannot disagree with
    the model; no memory is allocated.

    Raises:
        ValueError: if ``seq_len`` is not positive.
    """
    require_positive(seq_len=seq_len)
    with torch.device("meta"):
        decoder = Decoder(config)
    parameters = count_parameters(decoder)
    return Cost(seq_len, dict(parameters), _active(parameters, decoder), tuple(decoder.work(seq_len)))


def count_parameters(model: nn.Module) -> Counter[str]:
    """Parameters of each kind; a shared matrix counts once."""
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                counts[_kind(name, module)] += parameter.numel()
                seen.add(id(parameter))
    return counts


def _kind(name: str, module: nn.Module) -> str:
    if isinstance(module, nn.RMSNorm):
        return "norms"
    return str(getattr(module, "kind", name))  # the embedding and the head are called by their names


def _active(parameters: Counter[str], decoder: Decoder) -> dict[str, int]:
    """Of each kind, what one token uses on average: its experts, and the layers that it goes through."""
    idle: Counter[str] = Counter()
    for module in decoder.modules():
        if isinstance(module, MoE):
            idle["experts"] += _idle(module)
        elif isinstance(module, MixtureOfDepths):
            passed_by = 1 - module.router.capacity
            layer = count_parameters(module.block)
            layer["experts"] -= sum(_idle(moe) for moe in module.block.modules() if isinstance(moe, MoE))
            idle.update({kind: round(passed_by * count) for kind, count in layer.items()})
    return {kind: count - idle[kind] for kind, count in parameters.items()}


def _idle(moe: MoE) -> int:
    """Parameters of the experts that a token does not use, where it uses a fraction on average."""
    idle = moe.num_experts - min(moe.experts_per_token, moe.num_experts)
    return round(sum(idle * weight[0].numel() for weight in moe.experts.parameters()))
