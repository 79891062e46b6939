"""The study's command line: what could not end well is refused before it begins, and a dry run leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from experiment_script import load_script, write_text
from sparsity_cases import PRESETS, arguments, read

from toolkit.scaling.plan import TOLERANCE
from toolkit.scaling.sparsity.cli import conduct_sparsity, read_sparsity


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--next_budget", "{flops: 9e8}"), "next_budget.flops=900000000.0: it must be more than the grid's largest"),
        (("--next_budget", "{flops: 2e9, families: [mo]}"), "next_budget.families='mo': it must be one of dense, moe"),
        (("--next_budget", "{flops: 2e9, families: []}"), "next_budget.families="),
        (("--laws.baseline", "none"), "laws.baseline='none': it must be one of dense, moe"),
        (("--laws.dims", "[16, 8]"), "dims=.16, 8.: it must be two widths, ascending"),
        (("--laws.device", "abacus"), "device='abacus': it must be one of None, 'A100'"),
        (("--laws.device_batch", "0"), "device_batch=0: it must be positive"),
        (("--laws.device_dim", "130", "--laws.device_head_dim", "32"), "dims=130: it must be a multiple of 8"),
    ],
)
def test_what_could_not_be_reported_in_the_end_is_refused_at_once(
    text: Path, tmp_path: Path, more: tuple[str, ...], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        read(text, tmp_path / "study", *more)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--laws.dims", "[9, 9.5]"), "laws.dims"),
        (("--laws.dims", "[21, 23]"), "dims='21 to 23': it must be a range with a width"),
        (
            ("--laws.dims", "[8, 64]"),
            "next_budget.flops=1400000000.0: it must be .* at dim=.*laws.dims must end before",
        ),
    ],
)
def test_widths_that_a_law_could_not_choose_are_refused_before_the_folder_is_made(
    text: Path, tmp_path: Path, more: tuple[str, ...], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        conduct_sparsity(read(text, tmp_path / "study", *more), False, lambda found: tmp_path)
    assert not (tmp_path / "study").exists()


def test_a_dry_run_prints_search_grid_and_next_budget_and_leaves_nothing(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("dense_vs_sparse")
    script.main([*arguments(text, tmp_path / "study"), "--dry-run"])
    output = capsys.readouterr().out
    study = read(text, tmp_path / "study")
    planned = [*study.search_runs, *study.base.runs]
    assert len(planned) == 2 * 3 + 2 * 3 * 3
    assert all(run.name in output for run in planned)
    assert f"{len(planned)} runs on" in output
    assert all(f"{run.tokens:,}" in output for run in planned)  # nothing is cut off
    assert "then 2 runs of 1.4e9 FLOPs (2.8e9 in all) at widths that the grid's laws choose between 8 and 16" in output
    assert list(tmp_path.iterdir()) == []


def test_families_are_those_that_the_grid_trains(text: Path, tmp_path: Path) -> None:
    arms = "[{name: dense}, {name: unused, num_experts: 4}, {name: moe, num_experts: 4}]"
    budgets = "[{flops: 4e8, dims: [8], families: [dense]}, {flops: 9e8, dims: [8], families: [moe, dense]}]"
    study = read(text, tmp_path, "--model.arms", arms, "--grid.budgets", budgets)
    assert set(study.families) == {"dense", "moe"}
    assert {run.family for run in study.search_runs} == set(study.widths) == set(study.families)
    assert study.next_families == study.families


@pytest.mark.parametrize("preset", ["demo", "laptop"])
def test_presets_plan_every_run_within_1_percent(text: Path, tmp_path: Path, preset: str) -> None:
    more = ["--corpus.paths", f"[{text}]", "--cache", str(text.parent / "cache"), "--corpus.validation_share", "0.5"]
    study, _ = read_sparsity(["--preset", preset, *more, "--validation_windows", "8"], PRESETS, "", tmp_path)
    runs = [*study.search_runs, *study.base.runs]
    assert len({run.name for run in runs}) == len(runs)
    for run in runs:
        assert abs(run.flops["exact"] / run.budget - 1) <= TOLERANCE
    assert (study.next_budget is not None) == (preset == "laptop") == bool(study.search_runs)
    study.require_steps()
