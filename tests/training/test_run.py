"""One run in one folder: the same twice, the same when cut off and gone on with, and what it leaves."""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_cases import MODEL, WINDOWS, budget, corpus, metrics, training

from toolkit.models import Decoder
from toolkit.routing.finite import DivergedError
from toolkit.training import (
    Fitted,
    LanguageModel,
    TrainingConfig,
    beginning,
    fit,
    next_token_nll,
    run,
    training_loss,
)
from toolkit.training.config import OF_NO_STEP
from toolkit.training.health import NotFiniteError
from toolkit.training.progress import ReportProgress

CONFIG = training()
EVERY_STEP = 1e-6
"""Minutes between two checkpoints."""


class Killed(Exception):
    """Stands for the end of the process."""


def deterministic(fitted: Fitted) -> dict[str, float]:
    return {name: value for name, value in asdict(fitted).items() if name != "seconds"}


def fit_in(folder: Path, config: TrainingConfig = CONFIG, **settings: Any) -> Fitted:
    return fit(MODEL, config, corpus(), folder, budget(config), validation_count=WINDOWS, **settings)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fitted]:
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, fit_in(folder)


@pytest.fixture
def report_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ReportProgress", functools.partial(ReportProgress, seconds=0.0))


def kill_at(step: int, before: Callable[[], None] = lambda: None) -> Callable[[int, int], None]:
    def report(done: int, steps: int) -> None:
        if done == step:
            before()
            raise Killed

    return report


def test_what_it_reached(unbroken: tuple[Path, Fitted]) -> None:
    folder, fitted = unbroken
    assert fitted.steps == CONFIG.steps
    assert fitted.tokens == 40 * 4 * 32
    assert fitted.flops == pytest.approx(budget(CONFIG))
    assert fitted.seconds > 0
    assert fitted.bits_per_byte < 8  # it started near the 8 bits of a uniform guess, or above
    assert fitted.train_loss == pytest.approx(metrics(folder)[-2]["train/loss"])
    assert 0 <= fitted.max_violation <= 3
    assert 0 < fitted.token_entropy <= math.log(4)
    assert fitted.dropped_share == 0


def test_training_is_the_plain_loop(unbroken: tuple[Path, Fitted], tmp_path: Path) -> None:
    """The same steps written out in torch, without Lightning."""
    from toolkit.data import TokenWindows, validation_windows
    from toolkit.training import build_optimizer, learning_rate_factor

    folder, fitted = unbroken
    text = corpus()
    torch.manual_seed(CONFIG.seed)
    decoder = Decoder(MODEL)
    optimizer = build_optimizer(decoder, CONFIG)
    windows = TokenWindows(text.train, CONFIG.context, CONFIG.batch_size, CONFIG.seed)
    losses = {}
    for step in range(CONFIG.steps):
        for group in optimizer.param_groups:
            group["lr"] = CONFIG.learning_rate * learning_rate_factor(step, CONFIG)
        loss, nll = training_loss(decoder, windows.batch(step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), CONFIG.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        losses[step + 1] = float(nll)
    recorded = {int(row["step"]): row["train/loss"] for row in metrics(folder) if "train/loss" in row}
    assert set(recorded) == {1, *range(5, 41, 5)}
    assert recorded == pytest.approx({step: losses[step] for step in recorded}, abs=1e-6)
    decoder.eval()
    with torch.no_grad():
        nll = next_token_nll(decoder, validation_windows(text.validation, CONFIG.context, WINDOWS))
    assert fitted.bits_per_byte == pytest.approx(float(nll) / math.log(2), abs=1e-6)


def test_its_folder(unbroken: tuple[Path, Fitted]) -> None:
    folder, _ = unbroken
    names = {path.name for path in folder.iterdir()}
    assert {"run.json", "metrics.jsonl", "load.npz", "checkpoints"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    settings = json.loads((folder / "run.json").read_text())
    assert settings["model"] == json.loads(json.dumps(MODEL.to_dict()))
    assert settings["training"] == asdict(CONFIG)
    assert settings["parallel"]["devices"] == 1
    assert settings["precision"] == "32-true"
    assert settings["corpus"] == corpus().digest
    assert settings["budget"] == budget(CONFIG)


def test_a_checkpoint_of_the_end_holds_the_trained_weights(unbroken: tuple[Path, Fitted]) -> None:
    folder, fitted = unbroken
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    module = LanguageModel(MODEL, CONFIG)
    module.load_state_dict(saved["state_dict"])
    from toolkit.data import validation_windows

    with torch.no_grad():
        windows = validation_windows(corpus().validation, CONFIG.context, WINDOWS)
        nll = next_token_nll(module.decoder.eval(), windows)
    assert fitted.bits_per_byte == pytest.approx(float(nll) / math.log(2), abs=1e-6)


def test_the_same_seed_gives_the_same_run(unbroken: tuple[Path, Fitted], tmp_path: Path) -> None:
    torch.manual_seed(99)  # what the process drew before has no part in it
    assert deterministic(fit_in(tmp_path)) == deterministic(unbroken[1])
    assert metrics(tmp_path) == metrics(unbroken[0])


def test_another_seed_gives_another_run(unbroken: tuple[Path, Fitted], tmp_path: Path) -> None:
    other = fit_in(tmp_path, training(seed=1))
    assert other.bits_per_byte != unbroken[1].bits_per_byte
    assert metrics(tmp_path)[0]["train/loss"] != metrics(unbroken[0])[0]["train/loss"]


@pytest.mark.usefixtures("report_each_step")
@pytest.mark.parametrize("step", [2, 20, 21, 40])
def test_a_run_that_is_cut_off_goes_on_as_if_it_had_not_been(
    unbroken: tuple[Path, Fitted], tmp_path: Path, step: int
) -> None:
    config = training(checkpoint_minutes=EVERY_STEP)
    with pytest.raises(Killed):
        fit_in(tmp_path, config, report=kill_at(step))
    seen: list[int] = []
    resumed = fit_in(tmp_path, config, report=lambda done, steps: seen.append(done))
    assert seen == list(range(step, 41))  # the step before was the last to be saved
    assert deterministic(resumed) == deterministic(unbroken[1])
    assert metrics(tmp_path) == metrics(unbroken[0])


@pytest.mark.usefixtures("report_each_step")
def test_a_run_whose_folder_was_moved_still_has_one_last_checkpoint(tmp_path: Path) -> None:
    config = training(checkpoint_minutes=EVERY_STEP)
    with pytest.raises(Killed):
        fit_in(tmp_path / "here", config, report=kill_at(11))
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(Killed):
        fit_in(tmp_path / "there", config, report=kill_at(24))
    assert [path.name for path in (tmp_path / "there" / "checkpoints").iterdir()] == ["last.ckpt"]
    saved = torch.load(tmp_path / "there" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 23


@pytest.mark.usefixtures("report_each_step")
def test_in_64_bits_it_goes_on_exactly_too(tmp_path: Path) -> None:
    # Lightning by itself loads a checkpoint before it widens the model.
    config = training(precision="64-true", checkpoint_minutes=EVERY_STEP)
    whole = fit_in(tmp_path / "whole", training(precision="64-true"))
    with pytest.raises(Killed):
        fit_in(tmp_path / "cut", config, report=kill_at(13))
    assert deterministic(fit_in(tmp_path / "cut", config)) == deterministic(whole)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


@pytest.mark.usefixtures("report_each_step")
def test_what_was_written_after_the_checkpoint_is_written_anew(unbroken: tuple[Path, Fitted], tmp_path: Path) -> None:
    """Killed at step 37, the checkpoint of step 12 being the last."""
    config = training(checkpoint_minutes=EVERY_STEP)
    folder, kept = tmp_path / "run", tmp_path / "kept"

    def report(done: int, steps: int) -> None:
        if done == 13:
            shutil.copytree(folder / "checkpoints", kept)
        if done == 37:
            raise Killed

    with pytest.raises(Killed):
        fit_in(folder, config, report=report)
    shutil.rmtree(folder / "checkpoints")
    kept.rename(folder / "checkpoints")
    with (folder / "metrics.jsonl").open("a") as table:
        table.write('{"step": 37, "tok')  # torn by the kill
    seen: list[int] = []
    resumed = fit_in(folder, config, report=lambda done, steps: seen.append(done))
    assert seen[0] == 13
    assert deterministic(resumed) == deterministic(unbroken[1])
    assert metrics(folder) == metrics(unbroken[0])


@pytest.mark.parametrize("validation", [1, 2])
def test_a_run_that_is_cut_off_in_validation(
    unbroken: tuple[Path, Fitted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: int
) -> None:
    """The checkpoint is of the step before it: the first validation is half way, the second at the end."""
    config = training(checkpoint_minutes=EVERY_STEP)
    begun: list[int] = []

    def die(module: LanguageModel) -> None:
        begun.append(1)
        module._sums = []
        if len(begun) == validation:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "on_validation_epoch_start", die)
        with pytest.raises(Killed):
            fit_in(tmp_path, config)
    assert deterministic(fit_in(tmp_path, config)) == deterministic(unbroken[1])
    rows = metrics(tmp_path)
    assert len({(row["step"], "train/loss" in row) for row in rows}) == len(rows)
    assert [row for row in rows if "train/loss" in row] == [row for row in metrics(unbroken[0]) if "train/loss" in row]
    assert rows[-1] == metrics(unbroken[0])[-1]


@pytest.mark.usefixtures("report_each_step")
def test_a_run_that_had_ended_trains_no_further(unbroken: tuple[Path, Fitted], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken[0], folder)
    before = (folder / "metrics.jsonl").read_text()
    steps: list[int] = []
    again = fit_in(folder, report=lambda done, planned: steps.append(done))
    assert steps == []
    assert asdict(again) == asdict(unbroken[1])
    assert metrics(folder) == metrics(unbroken[0])
    assert (folder / "metrics.jsonl").read_text() == before


def test_bf16_mixed_trains(tmp_path: Path) -> None:
    config = training(precision="bf16-mixed")
    seen: list[bool] = []

    def watch(module: torch.nn.Module, inputs: Any) -> None:
        if isinstance(module, Decoder):
            seen.append(torch.is_autocast_enabled("cpu"))

    with torch.nn.modules.module.register_module_forward_pre_hook(watch):
        fitted = fit_in(tmp_path, config)
    assert len(seen) > 40
    assert all(seen)
    assert fitted.steps == 40
    assert math.isfinite(fitted.bits_per_byte)
    losses = [row["train/loss"] for row in metrics(tmp_path) if "train/loss" in row]
    assert losses[-1] < losses[0]
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert {weight.dtype for weight in saved["state_dict"].values()} == {torch.float32}


def test_dense_models_have_no_router_figures(tmp_path: Path) -> None:
    from training_cases import DENSE

    from toolkit.models import DecoderConfig

    model, config = DecoderConfig(256, 16, (DENSE,)), training(steps=4)
    fitted = fit(model, config, corpus(), tmp_path, budget(config, model), validation_count=WINDOWS)
    assert math.isnan(fitted.max_violation)
    assert math.isnan(fitted.token_entropy)
    assert fitted.dropped_share == 0
    assert not (tmp_path / "load.npz").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 5000}, "context=5000: it must be at most"),
        ({"steps": 40, "batch_size": 3}, "batch_size=3: it must be a multiple of"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_trained(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    from toolkit.parallel import ParallelConfig

    with pytest.raises(ValueError, match=message):
        fit_in(tmp_path, training(**changes), parallel=ParallelConfig(devices=2 if "batch_size" in changes else 1))
    assert not (tmp_path / "metrics.jsonl").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_the_trained_model_is_in_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where one was saved on the way, after which Lightning by itself saves none at the end."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    def once(folder: Path, config: TrainingConfig) -> ModelCheckpoint:
        return ModelCheckpoint(folder / "checkpoints", every_n_train_steps=config.steps // 2 + 1, save_last=True)

    monkeypatch.setattr(run, "clock_checkpoints", once)
    fit_in(tmp_path / "run")
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == CONFIG.steps


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed at step 20, with the checkpoint of step 19."""
    folder, config = tmp_path_factory.mktemp("cut"), training(checkpoint_minutes=EVERY_STEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "ReportProgress", functools.partial(ReportProgress, seconds=0.0))
        with pytest.raises(Killed):
            fit_in(folder, config, report=kill_at(20))
    return folder


OTHER_TRAINING: dict[str, Any] = {
    **{"steps": 41, "context": 16, "batch_size": 8, "learning_rate": 1e-4, "schedule": "wsd", "warmup_share": 0.2},
    **{"warmup_steps": 2, "decay_share": 0.1, "final_share": 0.0, "weight_decay": 0.0, "beta1": 0.8, "beta2": 0.9},
    **{"eps": 1e-6, "gradient_clip": 2.0, "precision": "64-true", "seed": 7, "log_every": 6, "validation_block": 64},
}
"""Another value of every setting that a run is made by."""


@pytest.mark.parametrize("main", [True, False])  # a process that found nothing wrong would wait for the others
@pytest.mark.parametrize("name", OTHER_TRAINING)
def test_a_run_does_not_go_on_with_other_settings(
    cut: Path, monkeypatch: pytest.MonkeyPatch, name: str, main: bool
) -> None:
    assert set(OTHER_TRAINING) | set(OF_NO_STEP) == {field.name for field in fields(TrainingConfig)}
    for module in (run, beginning):
        monkeypatch.setattr(module, "is_main_process", lambda: main)
    before = (cut / "run.json").read_bytes(), (cut / "metrics.jsonl").read_bytes()
    other = training(**{name: OTHER_TRAINING[name]})
    with pytest.raises(ValueError, match=f"^{name}=.* or another folder$"):
        fit(MODEL, other, corpus(), cut, budget(CONFIG), validation_count=WINDOWS)
    assert before == ((cut / "run.json").read_bytes(), (cut / "metrics.jsonl").read_bytes())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 2 * budget(CONFIG)}, "^budget="),
        (
            {"validation_count": WINDOWS // 2},
            f"^validation_windows={WINDOWS // 2}: it must be .* {WINDOWS}, or another",
        ),
        ({"corpus": replace(corpus(), digest="1" * 64)}, "^corpus='1111"),
        ({"model": replace(MODEL, blocks=MODEL.blocks[:2])}, "^model="),
    ],
)
def test_nor_with_another_budget_text_model_or_validation(cut: Path, settings: dict[str, Any], message: str) -> None:
    given = {"model": MODEL, "corpus": corpus(), "budget": budget(CONFIG), "validation_count": WINDOWS, **settings}
    with pytest.raises(ValueError, match=message):
        fit(training=CONFIG, folder=cut, **given)


def test_nor_in_another_precision_that_auto_has_come_to(cut: Path, tmp_path: Path) -> None:
    """The settings say "auto" both times; what it means on this machine is another thing than it was."""
    folder = tmp_path / "run"
    shutil.copytree(cut, folder)
    told = json.loads((folder / "run.json").read_text())
    told["precision"] = "bf16-mixed"
    (folder / "run.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="^precision='32-true': it must be .*'bf16-mixed', or another folder"):
        fit_in(folder)


def test_a_checkpoint_whose_settings_are_not_known_is_not_gone_on_from(cut: Path, tmp_path: Path) -> None:
    shutil.copytree(cut, tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(ValueError, match="^folder=.* its settings beside it, in .*run.json"):
        fit_in(tmp_path / "run")


def test_what_changes_nothing_of_what_is_learned_may_change(
    unbroken: tuple[Path, Fitted], cut: Path, tmp_path: Path
) -> None:
    shutil.copytree(cut, tmp_path / "run")
    resumed = fit_in(tmp_path / "run", training(checkpoint_minutes=60.0, evaluations=4))
    assert deterministic(resumed) == deterministic(unbroken[1])


def test_a_kill_while_the_table_is_cut_back_loses_no_row(
    unbroken: tuple[Path, Fitted], cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever file is being written then is left empty."""
    shutil.copytree(cut, tmp_path / "run")

    def torn(path: Path, *arguments: Any, **settings: Any) -> int:
        if "metrics.jsonl" in path.name:
            path.open("w").close()
            raise Killed
        return write_text(path, *arguments, **settings)

    write_text = Path.write_text
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", torn)
        with pytest.raises(Killed):
            fit_in(tmp_path / "run")
    fit_in(tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(unbroken[0])


def test_a_run_that_diverges_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises((DivergedError, NotFiniteError), match="finite") as refusal:
        fit_in(tmp_path, training(learning_rate=1e20))
    assert 1 < refusal.value.step <= CONFIG.steps
