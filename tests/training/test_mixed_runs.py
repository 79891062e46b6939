"""Runs with rows of a task among the text, and runs that begin from given weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_cases import DENSE, budget, corpus, metrics, training

from toolkit.data import TaskMixture, TokenWindows, validation_windows
from toolkit.data.synthetic import Passkey
from toolkit.models import Decoder, DecoderConfig
from toolkit.training import Fitted, build_optimizer, fit, learning_rate_factor, next_token_nll, run, training_loss
from toolkit.training.progress import ReportProgress

CONFIG = training(steps=12, checkpoint_minutes=1e-6, log_every=1)
MIXTURE = TaskMixture(Passkey(length=CONFIG.context, digits=2, words=4), 0.5, 256)
MODEL = DecoderConfig(vocab_size=MIXTURE.vocab_size, dim=16, blocks=(DENSE,))
COUNT = 8


class Killed(Exception):
    """Stands for the end of the process."""


def weights(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return Decoder(MODEL).state_dict()


def fit_in(folder: Path, **settings: Any) -> Fitted:
    settings = {"mixture": MIXTURE, **settings}
    return fit(MODEL, CONFIG, corpus(), folder, budget(CONFIG, MODEL), validation_count=COUNT, **settings)


def trained(folder: Path) -> dict[str, Tensor]:
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name.removeprefix("decoder."): value for name, value in saved.items()}


def by_hand(start: dict[str, Tensor], mixture: TaskMixture | None) -> tuple[list[float], Decoder]:
    """The same steps written out in torch: each one's loss, and the model."""
    decoder = Decoder(MODEL)
    decoder.load_state_dict(start)
    optimizer = build_optimizer(decoder, CONFIG)
    windows = TokenWindows(corpus().train, CONFIG.context, CONFIG.batch_size, CONFIG.seed)
    losses = []
    for step in range(CONFIG.steps):
        for group in optimizer.param_groups:
            group["lr"] = CONFIG.learning_rate * learning_rate_factor(step, CONFIG)
        batch = windows.batch(step)
        loss, nll = training_loss(decoder, batch if mixture is None else mixture.mix(batch, step, CONFIG.seed))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), CONFIG.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(nll))
    return losses, decoder


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fitted]:
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, fit_in(folder, initial=weights(5))


@pytest.mark.parametrize("mixture", [None, MIXTURE])
def test_it_begins_from_the_given_weights_and_trains_as_the_plain_loop(
    tmp_path: Path, mixture: TaskMixture | None
) -> None:
    fit_in(tmp_path, initial=weights(5), mixture=mixture)
    losses, decoder = by_hand(weights(5), mixture)
    recorded = [row["train/loss"] for row in metrics(tmp_path) if "train/loss" in row]
    assert recorded == pytest.approx(losses, abs=1e-5)
    for name, value in trained(tmp_path).items():
        torch.testing.assert_close(value, decoder.state_dict()[name], atol=1e-5, rtol=1e-4)


def test_the_given_weights_are_not_trained_in_place(unbroken: tuple[Path, Fitted], tmp_path: Path) -> None:
    start = weights(5)
    fit_in(tmp_path, initial=start)
    assert all(torch.equal(value, weights(5)[name]) for name, value in start.items())


def test_other_weights_give_another_run(unbroken: tuple[Path, Fitted], tmp_path: Path) -> None:
    fit_in(tmp_path, initial=weights(6))
    assert metrics(tmp_path)[0]["train/loss"] != metrics(unbroken[0])[0]["train/loss"]


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    other = Decoder(replace(MODEL, dim=32)).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch"):
        fit_in(tmp_path, initial=other)


@pytest.mark.parametrize("step", [2, 7])
def test_a_run_gone_on_with_does_not_begin_from_them_again(
    unbroken: tuple[Path, Fitted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """What it goes on from is its checkpoint, and it sees the rows it would have seen."""
    monkeypatch.setattr(run, "ReportProgress", functools.partial(ReportProgress, seconds=0.0))

    def kill(done: int, steps: int) -> None:
        if done == step:
            raise Killed

    with pytest.raises(Killed):
        fit_in(tmp_path, initial=weights(5), report=kill)
    again = fit_in(tmp_path, initial=weights(5))
    assert metrics(tmp_path) == metrics(unbroken[0])
    figures: Callable[[Fitted], dict[str, float]] = lambda fitted: {**asdict(fitted), "seconds": 0.0}  # noqa: E731
    assert str(figures(again)) == str(figures(unbroken[1]))  # as text: nan is not equal to itself


@pytest.mark.parametrize("changes", [{"initial": weights(6)}, {"mixture": replace(MIXTURE, share=0.25)}])
def test_a_run_is_not_gone_on_with_from_another_beginning_or_mixture(
    unbroken: tuple[Path, Fitted], changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(changes))}=.*or another folder"):
        fit_in(unbroken[0], **{"initial": weights(5), **changes})


def test_bits_per_byte_counts_text_alone(unbroken: tuple[Path, Fitted]) -> None:
    decoder = Decoder(MODEL)
    decoder.load_state_dict(trained(unbroken[0]))
    with torch.no_grad():
        nll = next_token_nll(decoder.eval(), validation_windows(corpus().validation, CONFIG.context, COUNT))
    assert unbroken[1].bits_per_byte == pytest.approx(float(nll) / math.log(2), abs=1e-5)


def test_the_budget_counts_the_task_s_rows_too(unbroken: tuple[Path, Fitted]) -> None:
    assert unbroken[1].flops == pytest.approx(budget(CONFIG, MODEL))
    assert unbroken[1].tokens == CONFIG.steps * CONFIG.tokens_per_step


def test_a_task_of_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task.length=64: it must be context=32"):
        fit_in(tmp_path, mixture=TaskMixture(Passkey(length=64, digits=2, words=4), 0.5, 256))


def test_a_vocabulary_smaller_than_the_text_s_is_refused(tmp_path: Path) -> None:
    small = replace(MODEL, vocab_size=255)
    with pytest.raises(ValueError, match="model.vocab_size=255: it must be at least the tokenizer's 256"):
        fit(small, CONFIG, corpus(), tmp_path, budget(CONFIG, small), validation_count=COUNT)
