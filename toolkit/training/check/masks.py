"""Check of what a decoder's outputs depend on: nothing beyond the reach of its masks."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from toolkit.attention import Causal, Pattern
from toolkit.attention.reach import reach
from toolkit.attention.selection import MoBA, NativeSparse, parse_sparsity
from toolkit.checks import require_positive
from toolkit.models import BlockConfig, Decoder
from toolkit.training.check.finding import Finding


def check_masks(decoder: Decoder, length: int = 32, seed: int = 0) -> Finding:
    """Whether no output has a gradient to a token that the masks keep from it, nor to a later one.

    Exactly 0 is asked for, in fp64 and eval mode, of a copy on random tokens; the reach is that of the patterns of the
    decoder's config, layer after layer. Of keys chosen by content all earlier ones are within it, and so they are in a
    mixture of depths, whose patterns count the tokens that were chosen.

    Args:
        decoder: the model; it is left as it is.
        length: tokens.
        seed: of the tokens.

    Raises:
        ValueError: if ``length`` is not positive.
    """
    require_positive(length=length)
    reached = reach([_seen(block) for block in decoder.config.blocks], length)
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    depends = input_support(decoder, length, seed)
    leaks, future = int((depends & ~reached).sum()), int((depends & later).sum())
    share = float(depends[~later].double().mean())
    figure = f"{leaks} outputs depend on tokens that no mask lets through, {future} on later tokens"
    figure += f"; {share:.0%} of earlier pairs reached at {length} tokens"
    return Finding("masks", "fail" if leaks or future else "pass", figure)


def _seen(block: BlockConfig) -> Pattern | MoBA | NativeSparse:
    """What the layer may see."""
    return Causal() if block.depth_capacity is not None else parse_sparsity(block.attention.pattern)


def input_support(decoder: Decoder, length: int, seed: int = 0) -> Tensor:
    """Whether the logits at i have a gradient to the embedding of token j: bool (length, length), row i."""
    generator = torch.Generator().manual_seed(seed)
    copy = deepcopy(decoder).cpu().double().eval()
    held: list[Tensor] = []
    copy.embedding.register_forward_hook(lambda _, __, output: held.append(output))
    tokens = torch.randint(decoder.config.vocab_size, (1, length), generator=generator)
    logits = copy(tokens).logits[0]
    direction = torch.randn(logits.shape[1], generator=generator, dtype=torch.float64)
    rows = [torch.autograd.grad(out @ direction, held[0], retain_graph=True)[0][0] for out in logits]
    return torch.stack([row.abs().amax(dim=-1) for row in rows]) != 0
