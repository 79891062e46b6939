"""What a run must go on with to be, bit for bit, the one that was not cut off."""

from __future__ import annotations

import random
import warnings
from itertools import product
from typing import Any

import lightning
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint

from toolkit.training.strategy import Place, draw_place, draw_places


class ExactResume(lightning.Callback):
    """Goes on with what Lightning does not go on with.

    Every process's random number generators are in the checkpoint: Python's, NumPy's, torch's and CUDA's. Dropout and
    the noise of routers are drawn from them. They are set right before the first batch, after all that starting again
    draws itself. Processes that read different sequences, or hold other layers, draw different numbers from there on;
    those that share a layer's heads or a sequence's tokens draw the same, see :func:`draw_place`.

    A checkpoint of a step after which the run validates was written before that: Lightning counts the validation as
    done when it goes on, and here it is done first.

    A checkpoint of a run with other places has no state for each: the generators are then seeded anew, by seed, step
    and place, and a warning says so.
    """

    def __init__(self) -> None:
        self._saved: list[dict[str, Any]] | None = None
        self._place: Place = 0, 0
        self._begun = False

    def on_fit_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Note where this process stands."""
        self._place = draw_place(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Of all processes, by rank; a collective call."""
        own = {"place": list(self._place), **capture_random_state()}
        if not dist.is_initialized():
            return {"ranks": [own]}
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, own)
        return {"ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint; it is set when training starts."""
        self._saved = state_dict["ranks"]

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Do the validation that the checkpoint's step was to have; the batch after it is the run's first."""
        self._begun = False
        if validation_is_due(trainer) and not trainer.should_stop:
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting = False
            trainer.validating = True
            loop.run()
            trainer.training = True

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        """Set the generators before the first batch of a run that goes on."""
        if self._begun:
            return
        self._begun = True
        saved, self._saved = self._saved, None
        held = {tuple(state.get("place", ())): state for state in saved or ()}
        stages, readers = draw_places(trainer)
        if held.keys() == set(product(range(stages), range(readers))):
            restore_random_state(held[self._place])
            return
        if trainer.global_step > 0:
            warnings.warn(
                f"The checkpoint holds random states of {len(held)} places, and this run has {stages} pipeline stages "
                f"x {readers} readers of the batch: dropout and the noise of routers, if there are any, are drawn anew "
                "from here on",
                stacklevel=2,
            )
        if trainer.global_step > 0 or any(self._place):  # the first place draws what one process alone would
            seed = np.random.SeedSequence((torch.initial_seed(), trainer.global_step, *self._place))
            torch.manual_seed(int(seed.generate_state(1)[0]))


class ClockCheckpoint(ModelCheckpoint):
    """A ``ModelCheckpoint`` that saves between optimizer steps only.

    Lightning looks at the clock after every micro-batch, but gradients that are being accumulated are in no checkpoint.
    """

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, if it is time to and the step is done."""
        if step_is_done(trainer, batch_idx):
            super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)


def validation_is_due(trainer: lightning.Trainer) -> bool:
    """Whether a run that begins to train has done the steps after which it validates, and not validated after them."""
    every, done = trainer.val_check_batch, trainer.global_step * trainer.accumulate_grad_batches
    return every is not None and done > 0 and done % every == 0


def step_is_done(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """Whether the optimizer stepped on this batch, where epochs have no end."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def capture_random_state() -> dict[str, Any]:
    """This process's generators, as tensors, numbers and text that are read with ``weights_only=True``."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "python": (version, torch.tensor(words, dtype=torch.int64), gauss),
        "numpy": (
            str(kind),
            torch.from_numpy(np.asarray(keys, np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if cuda else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set this process's generators to what :func:`capture_random_state` gave."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
