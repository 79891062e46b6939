"""What a decoder costs: its parameters by kind, and its FLOPs per token in named conventions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from toolkit.checks import require_positive
from toolkit.layers import MixtureOfDepths, MoE
from toolkit.layers.recomputation import Recompute, layer_policies, rerun_products
from toolkit.models import Decoder, DecoderConfig
from toolkit.work import BACKWARD, CERTAINTIES, Work

CONVENTIONS = ("exact", "palm", "hardware", "full_square", "chinchilla_f")

SOFTMAX = 3
"""FLOPs of a softmax for each of its numbers: exponential, sum and quotient (Hoffmann et al. 2022, appendix F)."""

KINDS = ("embedding", "head", "attention", "feed_forward", "experts", "shared_experts", "router", "norms")


@dataclass(frozen=True)
class Cost:
    """Parameters and FLOPs of a decoder at one sequence length.

    They are made of shapes alone. Where a training step's work depends on its data they are a bound of it, or what
    balanced loads would give, which :attr:`certainty` tells.

    Attributes:
        seq_len: tokens in a sequence.
        parameters: how many of each kind (``KINDS``); a tied head counts once, as the embedding.
        active_parameters: those that one token uses on average, in training: of the routed experts as many as there
            are rows a token, all of them with a soft router; of a layer that only some tokens go through, their share.
        work: every product of a forward over one sequence, in training, evaluation or both.
        recomputed: multiply-adds that a backward pass over one sequence does again, of layers that are computed again.
    """

    seq_len: int
    parameters: dict[str, int]
    active_parameters: dict[str, int]
    work: tuple[Work, ...]
    recomputed: int = 0

    @property
    def total_parameters(self) -> int:
        """Every parameter."""
        return sum(self.parameters.values())

    @property
    def total_active_parameters(self) -> int:
        """Every parameter that one token uses."""
        return sum(self.active_parameters.values())

    @property
    def certainty(self) -> str:
        """What ``training_flops`` is of the FLOPs of a training step, as the least certain part of it says.

        ``"exact"``: every step computes just that: all but what follows.
        ``"bound"``: at most that, since how much depends on data: GShard's random second expert, capacity.
        ``"balanced"``: that where loads are balanced, or as the target of a ``BiasBalancer`` says; elsewhere more or
        less: experts without computation (but with expert choice), token rounding.
        :func:`toolkit.compute.measure` counts what a run computes.
        """
        return max((part.certainty for part in self.work), key=CERTAINTIES.index, default="exact")

    @property
    def forward_flops(self) -> dict[str, float]:
        """FLOPs per token of a forward in evaluation, by convention; 2 for each multiply-add.

        Without a router's noise, and with all that training's capacity would have dropped. Where evaluation chooses by
        a threshold on data (expert choice, a mixture-of-depths layer) it is taken to choose as much as training does.

        ``exact``: products only, over visible pairs, router and chosen experts included.
        ``full_square``: the same had every (query, key) pair been computed.
        ``hardware``: what the kernels run: whole tiles of 128 queries by 64 keys.
        ``palm``: 2 N + 4 L H Q T with N the active parameters (Chowdhery et al. 2022, arXiv 2204.02311,
        appendix B): full square, every parameter taken for a product.
        ``chinchilla_f``: ``full_square`` with 3 FLOPs a score for the softmax, and without the head (Hoffmann et al.
        2022, arXiv 2203.15556, appendix F, whose list has embeddings and logits, whose Table A4 has neither). What is
        not in their list, such as routers, counts as in ``full_square``.
        """
        parts = [part for part in self.work if part.phase != "training"]
        needed, square, computed = (
            sum(getattr(part, name) for part in parts) for name in ("needed", "square", "computed")
        )
        palm = self.total_active_parameters + self._square_scores / self.seq_len
        return {
            "exact": 2 * needed / self.seq_len,
            "palm": 2 * palm,
            "hardware": 2 * computed / self.seq_len,
            "full_square": 2 * square / self.seq_len,
            "chinchilla_f": sum(map(_chinchilla_f, parts)) / self.seq_len,
        }

    @property
    def training_flops(self) -> dict[str, float]:
        """FLOPs per token of a training step's forward and backward, by convention; see also ``certainty``.

        Noise that a router adds is in it. Backward is twice the forward where there is one, but in ``hardware``, which
        counts recomputation as it is run, an operator's own and that of whole layers.
        """
        parts = [part for part in self.work if part.phase != "evaluation"]
        needed = sum((1 + part.backward) * part.needed for part in parts)
        square = sum((1 + part.backward) * part.square for part in parts)
        computed = sum((1 + part.computed_backward) * part.computed for part in parts)
        return {
            "exact": 2 * needed / self.seq_len,
            "palm": (1 + BACKWARD) * self.forward_flops["palm"],
            "hardware": 2 * (computed + self.recomputed) / self.seq_len,
            "full_square": 2 * square / self.seq_len,
            "chinchilla_f": sum((1 + part.backward) * _chinchilla_f(part) for part in parts) / self.seq_len,
        }

    @property
    def _square_scores(self) -> int:
        return sum(part.square for part in self.work if part.kind == "scores")


def _chinchilla_f(part: Work) -> int:
    """FLOPs of a forward of ``part``, as Hoffmann et al. 2022 count them."""
    return 0 if part.kind == "head" else 2 * part.square + SOFTMAX * part.scores


@lru_cache(maxsize=1024)
def cost(config: DecoderConfig, seq_len: int, recompute: Recompute = "none") -> Cost:
    """What the decoder of ``config`` costs on sequences of ``seq_len`` tokens.

    The model is built on the meta device and asked, layer by layer, so the count cannot disagree with
    the model; no memory is allocated.

    Args:
        config: the decoder.
        seq_len: tokens in a sequence.
        recompute: what its layers compute again in training, which ``hardware`` counts and no other convention does;
            see :func:`toolkit.layers.recomputation.recompute_layers`.

    Raises:
        ValueError: if ``seq_len`` is not positive, or ``recompute`` no policy.
    """
    require_positive(seq_len=seq_len)
    decoder = shapes_of(config)
    parameters = count_parameters(decoder)
    policies = layer_policies(recompute, len(config.blocks))
    again = (rerun_products(*layer, seq_len) for layer in zip(decoder.blocks, policies, strict=True))
    active = _active(parameters, decoder, seq_len)
    return Cost(seq_len, dict(parameters), active, tuple(decoder.work(seq_len)), sum(again))


@lru_cache(maxsize=8)
def shapes_of(config: DecoderConfig) -> Decoder:
    """The decoder of ``config`` without memory, to be asked for sizes and left as it is."""
    with torch.device("meta"):
        return Decoder(config)


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


def _active(parameters: Counter[str], decoder: Decoder, seq_len: int) -> dict[str, int]:
    """Of each kind, what one token uses on average: its experts, and the layers that it goes through."""
    idle: Counter[str] = Counter()
    for layer in decoder.blocks:
        if not isinstance(layer, MixtureOfDepths):
            idle["experts"] += _idle(layer, seq_len)
            continue
        through = layer.router.count(seq_len)
        used = count_parameters(layer.block)
        unused = _idle(layer.block, through)
        idle["experts"] += unused
        used["experts"] -= unused
        idle.update({kind: round((1 - through / seq_len) * count) for kind, count in used.items()})
    return {kind: count - idle[kind] for kind, count in parameters.items()}


def _idle(layer: nn.Module, seq_len: int) -> int:
    """Parameters of the layer's experts that a token of so long a sequence does not use, on average."""
    return round(
        sum(
            (moe.num_experts - moe.experts_per_token(seq_len)) * weight.shape[1:].numel()
            for moe in layer.modules()
            if isinstance(moe, MoE)
            for weight in moe.experts.parameters()
        )
    )
