"""Watches every router of a model while it trains."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from torch import Tensor

from toolkit.layers import MoE
from toolkit.routing import Assignment, RoutingStats, SoftRouter, co_selection, require_finite_logits
from toolkit.routing.processes import all_reduce
from toolkit.training.board import board
from toolkit.training.router_board import draw_load, draw_pairs, figures, write
from toolkit.training.router_probe import RouterProbe


class RouterMonitor(lightning.Callback):
    """Logs how healthy each MoE layer's routing is, and refuses logits that are not finite.

    Curves ``router/<layer>/...``: load and importance by expert, token and marginal entropy and their difference
    (mutual_information), MaxVio of the batch (max_violation) and of whole validation passes
    (max_violation_validation), min_load, load_variation, dead_experts, dropped_share, gate_mass, logit_rms,
    logit_max, bias_range where there is a balancer, and flip_rate: the share of one fixed sequence's choices that
    changed since the record before. Heat maps when training ends: load over time, and which experts are chosen
    together. The folder's ``load.npz`` holds the loads, ``flip_rate.npz`` the flip rates, by layer, with ``steps``.

    Figures are of the global batch (every process's tokens are added), of the last micro-batch where gradients are
    accumulated; the flip rate is of the first process's sequence. Soft routers are left out: every expert gets all
    its slots.

    Router logits that are infinite or NaN raise a ``ValueError`` that names the layer and the step: at every step
    on a CPU, at every record on an accelerator, which between records is not waited for.

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
        self.flips: dict[str, list[float]] = {}
        self.last: dict[str, RoutingStats] = {}
        self.together: dict[str, Tensor] = {}  # co-selection of the last record
        self.validation: dict[str, RoutingStats] = {}  # of the last validation pass
        self.probe = RouterProbe() if probe else None

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Tensor, batch_idx: int) -> None:
        """Keep the first sequence for the flip rate."""
        if self.probe is not None:
            self.probe.take(batch)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        """Check the logits; every so often, record how the step's tokens were routed."""
        step = trainer.global_step
        due = step == 1 or (step > 0 and step % self.every == 0)
        due = due and self.steps[-1:] != [step]  # a step's first micro-batches end where the step before did
        if due or batch.device.type == "cpu":
            _require_finite(module, step)
        if due:
            self._record(trainer, module)

    def on_validation_epoch_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Forget the pass before."""
        self.validation = {}

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
        for name, moe in routed_layers(module).items():
            stats = moe.stats
            self.validation[name] = self.validation[name] + stats if name in self.validation else stats

    def on_validation_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Log MaxVio over the whole pass (Wang et al. 2024's MaxVio_global)."""
        sums = {}
        for name, moe in moe_layers(module):  # in every process the same, whether or not it had a token for each
            if not isinstance(moe.router, SoftRouter):
                none = RoutingStats.none(moe.choices, moe.experts.down_proj.device)
                sums[name] = self.validation.get(name, none).all_reduce().cpu()
        self.validation = sums
        if trainer.is_global_zero and not trainer.sanity_checking:
            for name, stats in self.validation.items():
                write(board(trainer), name, {"max_violation_validation": stats.max_violation}, trainer.global_step)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Draw the heat maps and save the loads and flip rates."""
        if not (trainer.is_global_zero and self.loads):
            return
        loads = {name: np.array(rows) for name, rows in self.loads.items()}
        _save(self.folder / "load.npz", self.steps, loads)
        if self.flips:
            _save(self.folder / "flip_rate.npz", self.steps, {name: np.array(row) for name, row in self.flips.items()})
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
            "flips": self.flips,
            "together": self.together,
            "probe": None if self.probe is None else self.probe.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.steps, self.loads = state_dict["steps"], state_dict["loads"]
        self.last = {name: RoutingStats.unpack(packed) for name, packed in state_dict["last"].items()}
        self.flips, self.together = state_dict["flips"], state_dict["together"]
        if self.probe is not None and state_dict["probe"] is not None:
            self.probe.load_state_dict(state_dict["probe"])

    def _record(self, trainer: lightning.Trainer, module: Any) -> None:
        """Take down how the step's tokens were routed."""
        step, layers = trainer.global_step, routed_layers(module)
        self.steps.append(step)
        self.last = {name: moe.stats.all_reduce().cpu() for name, moe in layers.items()}
        self.together = {name: all_reduce(_pairs(moe)).cpu() for name, moe in layers.items()}
        with trainer.precision_plugin.forward_context():
            flips = {} if self.probe is None else self.probe.flip_rates(module.decoder, layers)
        for name in flips and layers:
            self.flips.setdefault(name, []).append(flips.get(name, np.nan))
        for name, stats in self.last.items():
            self.loads.setdefault(name, []).append(stats.load.tolist())
            if trainer.is_global_zero:
                changed = {"flip_rate": flips[name]} if name in flips else {}
                write(board(trainer), name, figures(stats, layers[name]) | changed, step)


def moe_layers(module: Any) -> list[tuple[str, MoE]]:
    """Every MoE of a LanguageModel with a short name: ``layer0``, ``layer1``, ..., or its path where it is nested."""
    return [(_short(path), moe) for path, moe in _moe_paths(module)]


def routed_layers(module: Any) -> dict[str, MoE]:
    """Those of :func:`moe_layers` whose last forward sent tokens to experts.

    Soft routers do not, nor does a layer that only some tokens go through when none did.
    """
    routed = ((name, moe) for name, moe in moe_layers(module) if moe.has_run)
    return {name: moe for name, moe in routed if isinstance(moe.assignment, Assignment)}


def _moe_paths(module: Any) -> list[tuple[str, MoE]]:
    return [(path, layer) for path, layer in module.decoder.named_modules() if isinstance(layer, MoE)]


def _short(path: str) -> str:
    plain = re.fullmatch(r"blocks\.(\d+)\.feed_forward", path)
    return f"layer{plain[1]}" if plain else path


def _require_finite(module: Any, step: int) -> None:
    for path, moe in _moe_paths(module):
        if not moe.has_run:
            continue
        require_finite_logits(moe.assignment.logits, path, step, getattr(moe.assignment, "valid", None))


def _pairs(moe: MoE) -> Tensor:
    assert isinstance(moe.assignment, Assignment)
    return co_selection(moe.assignment)


def _save(path: Path, steps: list[int], arrays: dict[str, Any]) -> None:
    np.savez(path, **{"steps": np.array(steps), **arrays})
