"""Which inputs a decoder's outputs have a gradient to: of the whole model, and of each of its layers alone."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.models import Decoder


@dataclass(frozen=True)
class Support:
    """Whether outputs have a gradient to inputs, exactly 0 being none.

    Attributes:
        rows: positions of the outputs that were looked at, ascending, (rows,).
        model: whether the logits there have one to the embedding of each token, bool (rows, length).
        layers: whether each layer's output has one to its input at each token, first layer to last.
    """

    rows: Tensor
    model: Tensor
    layers: tuple[Tensor, ...]


def input_support(decoder: Decoder, length: int, seed: int = 0, rows: int | None = None) -> Support:
    """The support of a copy of ``decoder`` in fp64 and eval mode, on random tokens.

    Args:
        decoder: the model; it is left as it is.
        length: tokens.
        seed: of the tokens, and of the choice of outputs.
        rows: outputs to look at, the last one and others at random; None for all of them.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(decoder.config.vocab_size, (1, length), generator=generator)
    others = torch.randperm(length - 1, generator=generator)[: length if rows is None else rows - 1]
    chosen = torch.cat([others, torch.tensor([length - 1])]).sort().values
    copy = deepcopy(decoder).cpu().double().eval()
    held: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    for part in copy.blocks:
        part.register_forward_hook(partial(_hold, held))
    embedded: list[Tensor] = []
    copy.embedding.register_forward_hook(lambda _, __, output: embedded.append(output))
    logits = copy(tokens).logits
    layers = [_support(*held[part], chosen, generator) for part in copy.blocks]
    return Support(chosen, _support(embedded[0], logits, chosen, generator), tuple(layers))


def _hold(
    held: dict[nn.Module, tuple[Tensor, Tensor]], part: nn.Module, given: tuple[Any, ...], output: Tensor
) -> None:
    held[part] = given[0], output


def _support(source: Tensor, output: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Of (1, length, dim) tensors: bool (rows, length), by each output's product with one random direction."""
    direction = torch.randn(output.shape[-1], generator=generator, dtype=output.dtype)
    products = output[0] @ direction
    gradients = (torch.autograd.grad(products[row], source, retain_graph=True)[0][0] for row in rows)
    return torch.stack([gradient.abs().amax(dim=-1) for gradient in gradients]) != 0
