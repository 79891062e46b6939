"""Watches every router of a model while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import lightning
import numpy as np
from torch import Tensor

from toolkit.layers import DepthStats, MoE
from toolkit.routing import Assignment, RoutingStats, SoftRouter, co_selection
from toolkit.routing.reduce import all_reduce
from toolkit.training.board import board
from toolkit.training.router_board import bias_range, depth_figures, draw_load, draw_pairs, figures, write, write_mean
from toolkit.training.router_layers import depth_layers, moe_layers, routed_layers, short_name
from toolkit.training.router_probe import RouterProbe
from toolkit.training.strategy import meshes_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Counts = TypeVar("Counts", RoutingStats, DepthStats)


class RouterMonitor(lightning.Callback):
    """Logs how healthy each MoE layer's routing is, and what each mixture-of-depths layer chose.

    Curves ``router/<layer>/...``: load and importance by expert, token and marginal entropy and their difference
    (mutual_information), MaxVio of the batch (max_violation) and of whole validation passes
    (max_violation_validation), min_load, load_variation, dead_experts, dropped_share, gate_mass, logit_rms,
    logit_max, non_finite, tokens, bias_range where there is a balancer, and flip_rate: the share of one fixed
    sequence's choices that changed since the record before. Of a mixture-of-depths layer depth_selected,
    depth_predicted and depth_accuracy, of the batch and, with ``_validation`` behind, of whole validation passes.
    ``router/max_violation`` and ``router/max_violation_validation`` are the means over layers.

    Heat maps when training ends: load over time, and which experts are chosen together. The folder's ``load.npz``
    holds the loads, ``flip_rate.npz`` the flip rates, by layer, with ``steps``.

    Figures are of the global batch (every process's tokens are added) and of all layers, in whichever process. Where
    gradients are accumulated they are of the last batch; a pipeline's are of all its micro-batches, but for the pairs,
    which are of the last. The flip rate is of the first process's sequence, which all processes route. Soft routers are
    left out: every expert gets all its slots. Between records nothing waits for the device. That logits are finite is
    ``LanguageModel``'s to see to.

    Args:
        folder: the run's folder.
        every: steps between two records; the first step is recorded too.
        probe: measure the flip rate, at the price of one sequence's forward a record. Of the training it changes
            nothing, not even the random numbers.
    """

    def __init__(self, folder: Path, every: int, *, probe: bool = True) -> None:
        self.folder, self.every = folder, every
        self.steps: list[int] = []
        self.loads: dict[str, list[list[float]]] = {}
        self.flip_rates: dict[str, list[float]] = {}
        self.last: dict[str, RoutingStats] = {}
        self.together: dict[str, Tensor] = {}  # co-selection of the last record
        self.validation: dict[str, RoutingStats] = {}  # of the last validation pass
        self.validation_depths: dict[str, DepthStats] = {}
        self.probe = RouterProbe() if probe else None

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Tensor, batch_idx: int) -> None:
        """Keep the first sequence for the flip rate."""
        if self.probe is not None:
            self.probe.take(batch, meshes_of(trainer))

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        """Every so often, record how the step's tokens were routed."""
        step = trainer.global_step
        due = step == 1 or (step > 0 and step % self.every == 0)
        due = due and self.steps[-1:] != [step]  # a step's first micro-batches end where the step before did
        if due:
            self._record(trainer, module)

    def on_validation_epoch_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Forget the pass before."""
        self.validation, self.validation_depths = {}, {}

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        module: Any,
        outputs: Any,
        batch: Tensor,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add how the batch's tokens were routed."""
        for name, stats in _by_layer(module.passes.routing()).items():
            self.validation[name] = self.validation[name] + stats if name in self.validation else stats
        for name, chosen in _by_layer(module.passes.depths()).items():
            self.validation_depths[name] = self._depths_so_far(name, module) + chosen

    def on_validation_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Log MaxVio over the whole pass (Wang et al. 2024's MaxVio_global), and what layers in depth chose."""
        sums = {}
        for name, moe in moe_layers(module):  # in every process the same, whether or not it had a token for each
            if not isinstance(moe.router, SoftRouter):
                none = RoutingStats.none(moe.choices, moe.experts.down_proj.device)
                sums[name] = self.validation.get(name, none).all_reduce().cpu()
        self.validation = module.passes.joined(sums)
        depths = {name: self._depths_so_far(name, module).all_reduce().cpu() for name in depth_layers(module)}
        self.validation_depths = module.passes.joined(depths)
        if trainer.is_global_zero and not trainer.sanity_checking:
            self._write_validation(board(trainer), trainer.global_step)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Draw the heat maps and save the loads and flip rates."""
        if not (trainer.is_global_zero and self.loads):
            return
        loads = {name: np.array(rows) for name, rows in self.loads.items()}
        _save(self.folder / "load.npz", self.steps, loads)
        if self.flip_rates:
            rates = {name: np.array(row) for name, row in self.flip_rates.items()}
            _save(self.folder / "flip_rate.npz", self.steps, rates)
        for name, load in loads.items():
            draw_load(board(trainer), name, load, trainer.global_step)
        for name, together in self.together.items():
            draw_pairs(board(trainer), name, together, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "steps": self.steps,
            "loads": self.loads,
            "last": {name: stats.pack() for name, stats in self.last.items()},
            "flip_rates": self.flip_rates,
            "together": self.together,
            "probe": None if self.probe is None else self.probe.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.steps, self.loads = state_dict["steps"], state_dict["loads"]
        self.last = {name: RoutingStats.unpack(packed) for name, packed in state_dict["last"].items()}
        self.flip_rates, self.together = state_dict["flip_rates"], state_dict["together"]
        if self.probe is not None and state_dict["probe"] is not None:
            self.probe.load_state_dict(state_dict["probe"])

    def _record(self, trainer: lightning.Trainer, module: Any) -> None:
        """Take down how the step's tokens were routed."""
        step, layers, joined = trainer.global_step, routed_layers(module), module.passes.joined
        stats = {name: each.all_reduce().cpu() for name, each in _by_layer(module.passes.routing()).items()}
        spread = {name: bias_range(layers[name]) for name in stats}
        pairs = {name: all_reduce(_pairs(moe)).cpu() for name, moe in layers.items()}
        chosen = {name: each.all_reduce().cpu() for name, each in _by_layer(module.passes.depths()).items()}
        with trainer.precision_plugin.forward_context():
            own: dict[str, float] = {}
            if self.probe is not None:
                own = self.probe.flip_rates(module.decoder, layers, module.passes.forward, meshes_of(trainer))
        self.last, self.together, rates, depths = joined(stats), joined(pairs), joined(own), joined(chosen)
        spread = joined(spread)
        self.steps.append(step)
        for name in rates and self.last:
            self.flip_rates.setdefault(name, []).append(rates.get(name, np.nan))
        for name, each in self.last.items():
            self.loads.setdefault(name, []).append(each.load.tolist())
        if not trainer.is_global_zero:
            return
        for name, each in self.last.items():
            rate = {"flip_rate": rates[name]} if name in rates else {}
            write(board(trainer), name, figures(each, spread[name]) | rate, step)
        write_mean(board(trainer), "max_violation", [each.max_violation for each in self.last.values()], step)
        for name, each in depths.items():
            write(board(trainer), name, depth_figures(each), step)

    def _depths_so_far(self, name: str, module: Any) -> DepthStats:
        """Of this validation pass; in every process there is one, whether or not it had a batch."""
        return self.validation_depths.get(name, DepthStats.none(next(module.parameters()).device))

    def _write_validation(self, writer: SummaryWriter, step: int) -> None:
        tag = "max_violation_validation"
        violations = {name: stats.max_violation for name, stats in self.validation.items() if stats.tokens > 0}
        for name, violation in violations.items():
            write(writer, name, {tag: violation}, step)
        write_mean(writer, tag, list(violations.values()), step)
        for name, chosen in self.validation_depths.items():
            write(writer, name, depth_figures(chosen, "_validation"), step)


def _by_layer(counts: Mapping[str, Counts]) -> dict[str, Counts]:
    return {short_name(path): each for path, each in counts.items()}


def _pairs(moe: MoE) -> Tensor:
    assert isinstance(moe.assignment, Assignment)
    return co_selection(moe.assignment)


def _save(path: Path, steps: list[int], arrays: dict[str, Any]) -> None:
    np.savez(path, **{"steps": np.array(steps), **arrays})
