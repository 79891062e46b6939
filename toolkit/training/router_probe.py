"""How much routing moves between two records: one fixed sequence, routed again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.data import Examples, as_examples
from toolkit.layers import MixtureOfDepths, MoE
from toolkit.parallel import Meshes
from toolkit.parallel.context import split_sequence
from toolkit.routing import Assignment
from toolkit.routing.selection import selection, selection_flip_rate
from toolkit.training.parts import of_the_first, whole


class RouterProbe:
    """Routes the first sequence it was shown, in eval mode, and says what share of the choices is new.

    Of several processes all route the first one's, so that all find the same, and a checkpoint has one sequence.

    Attributes:
        tokens: int64 (1, context), the whole sequence; None before there is one.
        chosen: what each layer chose the last time, bool (context, num_experts), on the host.
    """

    def __init__(self) -> None:
        self.tokens: Tensor | None = None
        self.chosen: dict[str, Tensor] = {}

    def take(self, batch: Tensor | Examples, meshes: Meshes | None = None) -> None:
        """Keep the first row of the first process's windows (batch, context + 1) or Examples, if none is kept yet.

        A collective call.

        Args:
            batch: this process's, of sequences that several share its part.
            meshes: those that the model is spread over.
        """
        if self.tokens is None:
            self.tokens = of_the_first(as_examples(batch).input_ids[:1], meshes)

    def flip_rates(
        self,
        decoder: nn.Module,
        layers: Mapping[str, MoE],
        forward: Callable[[Tensor], Any] | None = None,
        meshes: Meshes | None = None,
    ) -> dict[str, float]:
        """Share of each layer's choices that changed since the last call.

        nan the first time, and where another number of tokens reached the layer than before; absent where none did.

        Args:
            decoder: the model, or the layers of it that this process has.
            layers: of it, by name.
            forward: how input_ids pass through the whole model; by default ``decoder`` is called.
            meshes: those that it is spread over.
        """
        if self.tokens is None:
            return {}
        before = self.chosen
        with undisturbed(decoder, list(layers.values())):
            tokens = self.tokens.to(next(decoder.parameters()).device)
            if meshes is not None and meshes.config.context > 1:
                tokens = split_sequence(tokens, meshes.world["context"])
            (forward or decoder)(tokens)
            routed = {name: moe.assignment for name, moe in layers.items() if moe.has_run}
        chosen = {name: selection(how) for name, how in routed.items() if isinstance(how, Assignment)}
        self.chosen = {name: whole(own, meshes, dim=0).cpu() for name, own in chosen.items()}
        return {name: _flip_rate(before.get(name), now) for name, now in self.chosen.items()}

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"tokens": None if self.tokens is None else self.tokens.cpu(), "chosen": self.chosen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.tokens, self.chosen = state_dict["tokens"], state_dict["chosen"]


def _flip_rate(before: Tensor | None, now: Tensor) -> float:
    """Share of the choices that changed; nan where there is nothing to compare."""
    return selection_flip_rate(before, now) if before is not None and before.shape == now.shape else torch.nan


@contextmanager
def undisturbed(model: nn.Module, layers: list[MoE]) -> Iterator[None]:
    """Eval mode without gradients, after which nothing shows: modes, random numbers, the layers' last forward."""
    modes = [(module, module.training) for module in model.modules()]
    last = [(moe, moe._assignment) for moe in layers]
    depths = [(layer, layer._choice) for layer in model.modules() if isinstance(layer, MixtureOfDepths)]
    device = next(model.parameters()).device
    kind = "cuda" if device.type == "cpu" else device.type
    with torch.no_grad(), torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=kind):
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for moe, assignment in last:
                moe._assignment = assignment
            for layer, choice in depths:
                layer._choice = choice
