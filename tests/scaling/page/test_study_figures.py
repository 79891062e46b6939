"""A study has every figure that it has the data for, each with its PNG, twin, command and runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.scaling.folder import StudyFolder
from toolkit.scaling.page.study_figures import study_figures
from toolkit.scaling.report_figure import ReportFigure
from toolkit.scaling.results import RunResult


def test_all_of_them(figures: list[ReportFigure], rows: list[RunResult], folder: StudyFolder) -> None:
    best = min(rows, key=lambda row: row.bits_per_byte).run
    names = [figure.path.name.removesuffix(".png") for figure in figures]
    assert names == [
        "isoflop", "frontier", "multiplier", "total_parameters", "training", "balance", "predictions", "expert_load",
        "specialisation", "token_kinds", "co_selection",
    ]  # fmt: skip
    every = tuple(row.run for row in rows)
    for figure in figures:
        assert figure.path.parent == folder.path
        assert figure.path.is_file()
        assert figure.command.startswith("python experiments/dense_vs_sparse.py")
        assert figure.interactive is not None
        assert set(figure.runs) <= set(every)
    by_name = dict(zip(names, figures, strict=True))
    assert by_name["isoflop"].runs == by_name["training"].runs == every
    assert by_name["balance"].runs == tuple(row.run for row in rows if row.family != "dense")
    assert by_name["specialisation"].runs == by_name["expert_load"].runs == (best,)
    assert (folder.run(best) / "specialisation.npz").is_file()


def test_a_dense_study_has_no_figures_of_routing(folder: StudyFolder, rows: list[RunResult], tmp_path: Path) -> None:
    for row in rows:
        if row.family == "dense":
            (tmp_path / "runs").mkdir(exist_ok=True)
            (tmp_path / "runs" / row.run).symlink_to(folder.run(row.run))
    dense = [row for row in rows if row.family == "dense"]
    names = [figure.path.stem for figure in study_figures(StudyFolder(tmp_path), dense)]
    assert names == ["isoflop", "frontier", "total_parameters", "training"]


def test_a_run_without_records_is_an_error(rows: list[RunResult], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="metrics.jsonl"):
        study_figures(StudyFolder(tmp_path), rows[:2])
