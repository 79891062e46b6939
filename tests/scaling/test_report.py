"""The report as a file: whole, with every run, its figures, and words that follow the data."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_study import run_result, study

from toolkit.scaling.document import StudyDescription
from toolkit.scaling.figures import plot_frontier, plot_isoflop
from toolkit.scaling.report import write_report

STUDY = StudyDescription(
    title="Dense against sparse",
    question="What does sparsity buy at equal compute?",
    config="dims: [24, 32]\nseeds: 2\n",
    corpus=("a made-up corpus", "hash 1234"),
    machine="an imagined machine",
    precision="32-true",
    conventions=("FLOPs: exact",),
    seconds_source="median of 20 isolated steps",
    code_version="abc",
    command="python study.py",
)


def write(tmp_path: Path, rows: list, **settings) -> str:  # type: ignore[no-untyped-def,type-arg]
    path = write_report(tmp_path / "study", rows, STUDY, resamples=300, **settings)
    assert path == tmp_path / "study" / "report.md"
    assert [file.name for file in path.parent.glob("*report*")] == ["report.md"]  # no temporary left
    assert [file.name for file in path.parent.glob(".*")] == []
    return path.read_text()


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ", maxsplit=1)[0]


@pytest.mark.parametrize(
    ("gain", "slowdown", "words"),
    [
        (2.0, 1.0, ["In FLOPs: sparsity paid.", "clock: sparsity paid."]),
        (1.6, 3.0, ["In FLOPs: sparsity paid.", "clock: sparsity did not pay.", "has not won"]),
        (0.6, 1.5, ["In FLOPs: sparsity did not pay.", "clock: sparsity did not pay."]),
        (1.0, 1.0, ["In FLOPs: undecided", "clock: undecided"]),
    ],
)
def test_answer_follows_the_truth(tmp_path: Path, gain: float, slowdown: float, words: list[str]) -> None:
    rows = study(gain, slowdown, seeds=3, noise=0.006)
    text = section(write(tmp_path, rows), "Answer")
    for expected in words:
        assert expected in text


def test_every_run_and_every_section(tmp_path: Path) -> None:
    rows = study(seeds=2, noise=0.01)
    text = write(tmp_path, rows, caveats=["The learning rate was not tuned."], table="runs.csv")
    assert text.startswith("# Dense against sparse\n")
    runs = section(text, "Every run")
    assert all(f"| `{row.run}` |" in runs for row in rows)
    assert all(f"{row.bits_per_byte:.4f}" in runs for row in rows)
    assert "`runs.csv`" in runs
    for title in ("Answer", "Compute multiplier", "IsoFLOP minima", "What this cannot claim", "The study"):
        assert section(text, title).strip()
    assert "- The learning rate was not tuned." in section(text, "What this cannot claim")
    for fact in ("an imagined machine", "32-true", "hash 1234", "dims: [24, 32]", "python study.py", "abc"):
        assert fact in section(text, "The study")


def test_tables_are_rectangular(tmp_path: Path) -> None:
    text = write(tmp_path, study(seeds=2, noise=0.01))
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 3
    for block in blocks:
        assert len({line.count("|") for line in block}) == 1


def test_multiplier_table_has_both_sides_and_flags(tmp_path: Path) -> None:
    rows = study(gain=5.0, slowdown=1.0, seeds=2, noise=0.005, dense_budgets=(3e11, 1e12))
    table = section(write(tmp_path, rows), "Compute multiplier")
    assert "equal FLOPs" in table
    assert "equal seconds" in table
    (line,) = [line for line in table.splitlines() if line.startswith("| `moe` | 1e12")]
    assert line.count("won, extrapolated") == 2


def test_one_seed_is_said(tmp_path: Path) -> None:
    text = write(tmp_path, study())
    assert "supports no claim" in section(text, "Answer")
    assert "no intervals" in section(text, "Compute multiplier")
    assert "One seed" in section(text, "What this cannot claim")


def test_figures_are_embedded_by_relative_path(tmp_path: Path) -> None:
    rows = study()
    folder = tmp_path / "study" / "figures"
    figures = [plot_isoflop(rows, folder / "isoflop.png"), plot_frontier(rows, folder / "frontier.png")]
    text = write(tmp_path, rows, figures=figures)
    for figure in figures:
        assert f"](figures/{figure.path.name})" in text
        assert figure.caption in text


def test_nothing_to_compare_yet(tmp_path: Path) -> None:
    dense = [row for row in study() if row.family == "dense"]
    text = write(tmp_path, dense)
    assert "Nothing to compare" in section(text, "Answer")
    assert "## Compute multiplier" not in text
    sparse = [row for row in study() if row.family == "moe"]
    assert "Nothing to compare" in write(tmp_path, sparse)


def test_diverged_run_is_shown_and_left_out(tmp_path: Path) -> None:
    rows = study(seeds=2, noise=0.01)
    clean = section(write(tmp_path, rows), "Compute multiplier")
    bad = replace(run_result("moe", 1e12, 512, 0, math.nan), run="moe-bad")
    text = write(tmp_path, [*rows, bad])
    assert section(text, "Compute multiplier") == clean
    assert "`moe-bad`" in section(text, "What this cannot claim")
    assert "diverged" in section(text, "Every run")


def test_no_finite_run_is_refused(tmp_path: Path) -> None:
    for rows in ([], [run_result("moe", 1e12, 64, 0, math.nan)]):
        with pytest.raises(ValueError, match="at least one finished run"):
            write_report(tmp_path, rows, STUDY)
    assert not list(tmp_path.iterdir())


def test_an_older_report_stays_if_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(tmp_path, study(), STUDY)
    before = path.read_text()

    def fail(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path, study(gain=3.0), STUDY)
    assert path.read_text() == before
