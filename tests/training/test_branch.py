"""A run begun from a longer one's checkpoint is the run that it would have been by itself."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_cases import DENSE, WINDOWS, budget, corpus, metrics, training

from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, MoEConfig
from toolkit.training import Fitted, TrainingConfig, beginning, fit, run
from toolkit.training.branch import Branch, checkpoint_of
from toolkit.training.checkpoints import CheckpointStore
from toolkit.training.progress import ReportProgress
from toolkit.training.run_lock import RunLock

BALANCED = MoEConfig(16, 4, 2, router="TopKRouter(score='sigmoid', balancer=BiasBalancer(rate=0.01))")
MODEL = DecoderConfig(256, 16, (BlockConfig(AttentionConfig(heads=2), BALANCED), DENSE))
NOISY = "TopKRouter(noise=GaussianNoise(std=1.0))"
TRUNK = training(schedule="wsd", warmup_steps=4, decay_share=0.25, steps=48, checkpoint_minutes=60.0)
LENGTHS = (24, 32, 40)
EVERY_STEP = 1e-6
"""Minutes between two checkpoints."""


class Killed(Exception):
    """Stands for the end of the process."""


def fit_in(folder: Path, config: TrainingConfig, **settings: Any) -> Fitted:
    given = {"model": MODEL, "corpus": corpus(), "validation_count": WINDOWS, **settings}
    model, text = given.pop("model"), given.pop("corpus")
    return fit(model, config, text, folder, budget(config, model), **given)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trunk"
    fit_in(folder, TRUNK, keep_at=[replace(TRUNK, steps=steps).decay_start for steps in LENGTHS])
    return folder


def begin(trunk: Path, config: TrainingConfig) -> Path:
    return checkpoint_of(trunk, config.decay_start)


def figures(fitted: Fitted) -> dict[str, float]:
    return {name: value for name, value in asdict(fitted).items() if name != "seconds"}


def trained(folder: Path) -> dict[str, Any]:
    """What a run's last checkpoint holds of weights, balancers' biases, moments and the callbacks' figures."""
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    monitor, counter = saved["callbacks"]["RouterMonitor"], saved["callbacks"]["ComputeBudget"]
    losses = saved["callbacks"]["RunMetrics"]["losses"]
    return {"weights": saved["state_dict"], "moments": saved["optimizer_states"], "losses": losses} | {
        "loads": monitor["loads"], "steps": monitor["steps"], "counted": counter,
    }  # fmt: skip


def assert_same(mine: Any, its: Any) -> None:
    torch.testing.assert_close(mine, its, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("evaluations", [1, 4])  # four: one falls on the very step of the branch
def test_a_branch_is_the_run_trained_alone(trunk: Path, tmp_path: Path, steps: int, evaluations: int) -> None:
    config = replace(TRUNK, steps=steps, evaluations=evaluations)
    alone = fit_in(tmp_path / "alone", config)
    seen: list[int] = []
    branch = fit_in(tmp_path / "branch", config, branch=begin(trunk, config), report=lambda at, of: seen.append(at))
    assert seen[0] == config.decay_start + 1  # nothing of the trunk is trained again
    assert figures(branch) == figures(alone)
    assert (branch.steps, branch.tokens) == (steps, steps * config.tokens_per_step)
    assert branch.flops == pytest.approx(budget(config, MODEL))
    assert_same(trained(tmp_path / "branch"), trained(tmp_path / "alone"))


@pytest.mark.parametrize(("steps", "evaluations"), [(24, 2), (40, 4)])  # of the four, one at the step of the branch
def test_its_table_is_that_of_the_run_alone(trunk: Path, tmp_path: Path, steps: int, evaluations: int) -> None:
    """But for validations up to the branch, which are the trunk's; one that is due at its very step is its own."""
    config = replace(TRUNK, steps=steps, evaluations=evaluations)
    fit_in(tmp_path / "alone", config)
    fit_in(tmp_path / "branch", config, branch=begin(trunk, config))
    mine, its = metrics(tmp_path / "branch"), metrics(tmp_path / "alone")

    def training_rows(rows: list[dict[str, float]]) -> list[dict[str, float]]:
        return [row for row in rows if "train/loss" in row]

    due = config.decay_start % (steps // evaluations) == 0
    first = config.decay_start + (not due)  # of its own

    def validations(rows: list[dict[str, float]], after: bool) -> list[dict[str, float]]:
        return [row for row in rows if "train/loss" not in row and (row["step"] >= first) == after]

    assert training_rows(mine) == training_rows(its)
    assert len(training_rows(mine)) == 1 + steps // 5
    assert validations(mine, after=True) == validations(its, after=True)
    assert validations(mine, after=True)[-1]["step"] == steps
    shared = [row for row in metrics(trunk) if row["step"] <= config.decay_start]
    assert validations(mine, after=False) == validations(shared, after=False)
    assert [row["step"] for row in mine] == sorted(row["step"] for row in mine)


def test_of_a_trunk_that_was_killed_meanwhile_only_whole_rows_until_the_branch_are_copied(
    trunk: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(trunk, cut)
    with (cut / "metrics.jsonl").open("a") as table:
        table.write('{"step": 49, "tok')
    Branch.open(checkpoint_of(cut, 24)).copy_history(tmp_path / "run")
    assert metrics(tmp_path / "run") == [row for row in metrics(trunk) if row["step"] <= 24]
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 5, 10, 15, 20, 24]  # validated at 24


def test_its_curves_begin_with_the_trunk_s(trunk: Path, tmp_path: Path) -> None:
    config = replace(TRUNK, steps=40)
    fit_in(tmp_path, config, branch=begin(trunk, config))
    table = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    for suffix, axis in (("", "step"), ("_by_tokens", "tokens"), ("_by_milliseconds", "milliseconds")):
        for tag in ("train/loss", "train/learning_rate", "validation/bits_per_byte"):
            curve = sorted((event.step, event.value) for event in events.Scalars(tag + suffix))
            rows = [(row[axis], row[tag]) for row in table if tag in row]
            assert [step for step, _ in curve] == [step for step, _ in rows]
            assert [value for _, value in curve] == pytest.approx([value for _, value in rows])
    recorded = [event.step for event in events.Scalars("router/max_violation")]
    assert sorted(recorded) == [1, *range(5, 41, 5)]


def test_a_trunk_that_keeps_checkpoints_is_the_run_without(trunk: Path, tmp_path: Path) -> None:
    fit_in(tmp_path, TRUNK)
    assert_same(trained(trunk), trained(tmp_path))
    assert metrics(trunk) == metrics(tmp_path)
    assert {path.name for path in (trunk / "checkpoints").iterdir()} == {
        "step18.ckpt", "step24.ckpt", "step30.ckpt", "last.ckpt",
    }  # fmt: skip


def kill_at(step: int) -> Callable[[int, int], None]:
    def report(done: int, steps: int) -> None:
        if done == step:
            raise Killed

    return report


@pytest.fixture
def report_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ReportProgress", functools.partial(ReportProgress, seconds=0.0))


@pytest.mark.usefixtures("report_each_step")
@pytest.mark.parametrize(("minutes", "first"), [(EVERY_STEP, 35), (60.0, 31)])
def test_a_branch_that_is_cut_off_goes_on_from_its_own_checkpoint_or_begins_anew(
    trunk: Path, tmp_path: Path, minutes: float, first: int
) -> None:
    config = replace(TRUNK, steps=40, checkpoint_minutes=minutes)
    whole = fit_in(tmp_path / "whole", config, branch=begin(trunk, config))
    with pytest.raises(Killed):
        fit_in(tmp_path / "cut", config, branch=begin(trunk, config), report=kill_at(35))
    seen: list[int] = []
    resumed = fit_in(tmp_path / "cut", config, branch=begin(trunk, config), report=lambda at, of: seen.append(at))
    assert seen == list(range(first, 41))
    assert figures(resumed) == figures(whole)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert_same(trained(tmp_path / "cut"), trained(tmp_path / "whole"))
    settings = json.loads((tmp_path / "cut" / "run.json").read_text())
    assert settings["branch"] == {"trunk": "trunk", "step": 30}
    copied = list((tmp_path / "cut").glob("events.out.tfevents.*.trunk"))
    assert len(copied) == 1


@pytest.mark.usefixtures("report_each_step")
@pytest.mark.parametrize("kill", [18, 19, 20])  # the step of a kept checkpoint, and the two after
def test_a_trunk_that_is_cut_off_keeps_the_same_checkpoints(tmp_path: Path, trunk: Path, kill: int) -> None:
    config = replace(TRUNK, checkpoint_minutes=EVERY_STEP)
    with pytest.raises(Killed):
        fit_in(tmp_path, config, keep_at=(18, 24), report=kill_at(kill))
    fit_in(tmp_path, config, keep_at=(18, 24))
    for step in (18, 24):
        kept = torch.load(checkpoint_of(tmp_path, step), weights_only=True)
        assert kept["global_step"] == step
        assert_same(kept["state_dict"], torch.load(checkpoint_of(trunk, step), weights_only=True)["state_dict"])
    assert_same(trained(tmp_path), trained(trunk))


def test_a_branch_may_decay_otherwise_than_its_trunk(trunk: Path, tmp_path: Path) -> None:
    """Steps, length and depth of the decay are its own."""
    config = replace(TRUNK, steps=36, decay_share=0.5, final_share=0.0)
    alone = fit_in(tmp_path / "alone", config)
    assert figures(fit_in(tmp_path / "branch", config, branch=checkpoint_of(trunk, 18))) == figures(alone)


def test_a_branch_without_a_decay_is_the_trunk_s_model_at_that_step(trunk: Path, tmp_path: Path) -> None:
    config = replace(TRUNK, steps=24, decay_share=0.0)
    alone = fit_in(tmp_path / "alone", config)
    assert figures(fit_in(tmp_path / "branch", config, branch=checkpoint_of(trunk, 24))) == figures(alone)


def test_validation_draws_nothing_that_training_would_have_drawn(tmp_path: Path) -> None:
    """Else a trunk and its branch, validated at other steps, would part where attention drops weights."""
    block = BlockConfig(AttentionConfig(heads=2, dropout_p=0.5), MoEConfig(16, 4, 2, router=NOISY))
    model, config = DecoderConfig(256, 16, (block,)), replace(TRUNK, steps=16)
    for evaluations in (1, 8):
        fit_in(tmp_path / str(evaluations), replace(config, evaluations=evaluations), model=model)
    assert_same(trained(tmp_path / "1"), trained(tmp_path / "8"))


def test_a_checkpoint_knows_what_was_spent_on_it(trunk: Path) -> None:
    branch = Branch.open(checkpoint_of(trunk, 24))
    assert (branch.step, branch.tokens, branch.trunk) == (24, 24 * TRUNK.tokens_per_step, trunk)
    assert branch.flops == pytest.approx(budget(TRUNK, MODEL, steps=24))
    assert branch.seconds > 0


OTHER = DecoderConfig(256, 16, (DENSE,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed=1: it must be 0, as in the trunk"),
        ({"batch_size": 8}, "batch_size=8: it must be 4, as in the trunk"),
        ({"context": 16}, "context=16: it must be 32, as in the trunk"),
        ({"learning_rate": 1e-3}, "learning_rate=0.001: it must be 0.003, as in the trunk"),
        ({"weight_decay": 0.0}, "weight_decay=0.0: it must be 0.1, as in the trunk"),
        ({"log_every": 7}, "log_every=7: it must be 5, as in the trunk"),
        ({"warmup_steps": 5}, "warmup=5: it must be 4, as in the trunk"),
        ({"schedule": "cosine"}, "schedule='cosine': it must be 'wsd' for a run that begins as a branch"),
        ({"precision": "bf16-mixed"}, "precision='bf16-mixed': it must be '32-true', as in the trunk"),
        ({"decay_share": 0.5}, r"step30.ckpt': it must be of step 20 or before, where the first decay starts"),
    ],
)
def test_a_run_that_the_trunk_is_no_beginning_of_is_refused(
    trunk: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = replace(TRUNK, steps=40, **changes)
    with pytest.raises(ValueError, match=message):
        fit_in(tmp_path / "run", config, branch=checkpoint_of(trunk, 30))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": OTHER}, "^model="),
        ({"corpus": replace(corpus(), digest="1" * 64)}, "^corpus='1111"),
        ({"validation_count": 20}, "validation_windows=20: it must be 40, as in the trunk"),
        ({"initial": {"weight": torch.zeros(1)}}, "^initial="),
        ({"keep_at": (41,)}, "keep_at=41: it must be between 1 and steps=40"),
        ({"keep_at": (0,)}, "keep_at=0: it must be between 1 and steps=40"),
    ],
)
def test_so_are_another_model_text_or_beginning(
    trunk: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_in(tmp_path / "run", replace(TRUNK, steps=40), branch=checkpoint_of(trunk, 30), **settings)
    assert not (tmp_path / "run").exists()


def test_every_process_refuses_and_only_the_main_one_writes(
    trunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that found nothing wrong would wait for those that did."""
    for module in (run, beginning):
        monkeypatch.setattr(module, "is_main_process", lambda: False)
    with pytest.raises(ValueError, match="seed=1: it must be 0, as in the trunk"):
        fit_in(tmp_path / "run", replace(TRUNK, steps=40, seed=1), branch=checkpoint_of(trunk, 30))
    folder = tmp_path / "run"
    beginning.begin(CheckpointStore(folder), RunLock(folder), TRUNK, {}, None)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_in_the_trunk_s_decay_is_refused(trunk: Path, tmp_path: Path) -> None:
    last = trunk / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match="of step 36 or before, where the first decay starts, and not of step 48"):
        fit_in(tmp_path, replace(TRUNK, steps=96), branch=last)


def test_a_checkpoint_that_is_not_there_or_in_no_run_is_refused(trunk: Path, tmp_path: Path) -> None:
    config = replace(TRUNK, steps=40)
    with pytest.raises(ValueError, match=r"^branch='.*step31.ckpt': it must be a checkpoint$"):
        fit_in(tmp_path, config, branch=checkpoint_of(trunk, 31))
    lost = tmp_path / "lost" / "checkpoints"
    lost.mkdir(parents=True)
    shutil.copy(checkpoint_of(trunk, 30), lost)
    with pytest.raises(ValueError, match="in a run's folder, with its settings in"):
        fit_in(tmp_path / "run", config, branch=lost / "step30.ckpt")
