"""Random generators in and out of a checkpoint, and a step of several micro-batches that is cut off in its middle."""

from __future__ import annotations

import random
import warnings
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from training_cases import corpus, training

from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, MoEConfig
from toolkit.training import LanguageModel, StepBatches
from toolkit.training.checkpoints import CheckpointStore, read_checkpoint
from toolkit.training.exact_resume import ClockCheckpoint, ExactResume, capture_random_state, restore_random_state

NOISY = "TopKRouter(score='sigmoid', noise=GaussianNoise(), losses=[LoadBalancingLoss(0.1)], balancer=BiasBalancer())"
MODEL = DecoderConfig(
    256, 16, (BlockConfig(AttentionConfig(heads=2, dropout_p=0.2), MoEConfig(16, 4, 2, router=NOISY)),)
)
STEPS = 9


def draws() -> list[Any]:
    return [
        random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist(),
        torch.randn(1).item(),
    ]  # fmt: skip


def test_all_generators_go_on_where_they_were_also_through_a_file(tmp_path: Path) -> None:
    for seed, used in ((3, 0), (4, 7)):
        lightning.seed_everything(seed, verbose=False)
        for _ in range(used):
            draws()
        random.gauss(0, 1), np.random.randn()  # both keep a second number for the next call
        torch.save(capture_random_state(), tmp_path / "state.pt")
        expected = [draws() for _ in range(3)]
        lightning.seed_everything(99, verbose=False)
        restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
        assert [draws() for _ in range(3)] == expected


class Losses(lightning.Callback):
    """The loss of every micro-batch; ends the process's part before one of them."""

    def __init__(self, stop_before: int | None = None) -> None:
        self.by_batch: dict[int, float] = {}
        self.stop_before = stop_before

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.stop_before:
            raise InterruptedError

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.by_batch[batch_idx] = outputs["loss"].item()


def fit(folder: Path, micro_batches: int, stop_before: int | None = None, random_state: bool = True) -> Losses:
    lightning.seed_everything(0, verbose=False)
    losses, text, config = Losses(stop_before), corpus(), training(batch_size=2)
    module = LanguageModel(MODEL, config)
    data = StepBatches(text.train[:300], text.validation, config, 4)  # an epoch is four batches
    store = CheckpointStore(folder)
    clock = ClockCheckpoint(folder / "checkpoints", every_n_train_steps=1, save_top_k=0, save_last=True)
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=STEPS, max_epochs=-1, accumulate_grad_batches=micro_batches, logger=False,
        callbacks=[losses, clock, *([ExactResume()] if random_state else [])], plugins=[store],
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(InterruptedError):
            trainer.fit(module, data, ckpt_path=store.newest(), weights_only=True)
    return losses


@pytest.mark.parametrize(("micro_batches", "stop_before"), [(1, 5), (3, 12), (3, 13), (3, 14), (2, 17)])
def test_a_run_that_accumulates_goes_on_bit_for_bit(tmp_path: Path, micro_batches: int, stop_before: int) -> None:
    """Cut off between steps and within one: what was accumulated is lost, so the step begins anew."""
    whole = fit(tmp_path / "whole", micro_batches)
    assert list(whole.by_batch) == list(range(STEPS * micro_batches))
    cut = fit(tmp_path / "run", micro_batches, stop_before)
    assert max(cut.by_batch) == stop_before - 1
    after = fit(tmp_path / "run", micro_batches)
    assert min(after.by_batch) == stop_before // micro_batches * micro_batches
    assert {**cut.by_batch, **after.by_batch} == whole.by_batch
    one, other = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("run", "whole"))
    torch.testing.assert_close(one["state_dict"], other["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(one["optimizer_states"], other["optimizer_states"], rtol=0, atol=0)


def test_without_the_generators_it_would_not() -> None:
    """That the test above could fail: the draws matter."""
    state = capture_random_state()
    first = torch.rand(4)
    assert not torch.equal(first, torch.rand(4))
    restore_random_state(state)
    assert torch.equal(first, torch.rand(4))


def test_a_checkpoint_without_them_is_warned_of(tmp_path: Path) -> None:
    fit(tmp_path, 1, stop_before=5, random_state=False)
    trainer: Any = SimpleNamespace(strategy=None, world_size=2, global_rank=1, global_step=5)
    held = {"place": [0, 0], **capture_random_state()}
    for saved, told in (([held], "random states of 1 places"), ([capture_random_state()], "of 1 places"), ([], "of 0")):
        callback = ExactResume()
        callback.load_state_dict({"ranks": saved})
        callback.on_fit_start(trainer, None)
        with pytest.warns(UserWarning, match=f"{told}.* this run has 1 pipeline stages x 2 readers"):
            callback.on_train_batch_start(trainer, None, None, 0)


def test_nothing_is_saved_within_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(ModelCheckpoint, "on_train_batch_end", lambda self, t, m, o, b, index: seen.append(index))
    fit(tmp_path, 3)
    assert seen == list(range(2, 3 * STEPS, 3))
