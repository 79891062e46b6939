"""A whole study of seconds: cut off between its stages, gone on with, reported, and begun again with nothing to do."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from experiment_script import write_text
from sparsity_cases import read

from toolkit.scaling import sweep
from toolkit.scaling.claims import number
from toolkit.scaling.sparsity import prediction
from toolkit.scaling.sparsity.cli import Findings, conduct_sparsity
from toolkit.scaling.sparsity.report import TITLE, write_sparsity_report
from toolkit.scaling.sparsity.study import SparsityStudy

SECTIONS = (
    "Answer", "Compute multiplier", "By a law of all runs", "The prediction, and its test", "What it costs besides",
    "Projected onto one H100", "Exponents, by what counts as a parameter", "Learning rates", "Figures",
    "IsoFLOP minima", "What this cannot claim", "The study", "Every run", "The runs of the prediction",
    "The runs of the search",
)  # fmt: skip
SEARCHED, GRID, TESTED = 2 * 3, 2 * 3 * 3, 2


@dataclass
class Finished:
    """A study that was cut off once, after the grid.

    Attributes:
        text, folder: where it is.
        before, after: names of the runs that were trained before it was cut off, and after.
        found: for its report.
        predicted: prediction.json.
    """

    text: Path
    folder: Path
    before: list[str]
    after: list[str]
    found: Findings
    predicted: str


class Trained(list[str]):
    """Names of the runs that are trained while it watches."""

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        train: Callable[..., object] = sweep.train_one

        def watched(run: object, *arguments: object) -> object:
            self.append(run.name)  # type: ignore[attr-defined]
            return train(run, *arguments)

        patch.setattr(sweep, "train_one", watched)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    text = write_text(tmp_path_factory.mktemp("text"))
    folder, kept = text.parent / "whole", []
    before, after = Trained(), Trained()

    def cut_off(study: SparsityStudy, rows: object) -> None:
        raise KeyboardInterrupt

    def report(found: Findings) -> Path:
        kept.append(found)
        return write_sparsity_report(found)

    with pytest.MonkeyPatch.context() as patch:
        before.watch(patch)
        patch.setattr(SparsityStudy, "fit", cut_off)
        with pytest.raises(KeyboardInterrupt):
            conduct_sparsity(read(text, folder), False, report)
    with pytest.MonkeyPatch.context() as patch:
        after.watch(patch)
        conduct_sparsity(read(text, folder), False, report)
    (found,) = kept
    yield Finished(text, folder, before, after, found, (folder / "prediction.json").read_text())


@pytest.fixture
def rewrite(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> Callable[[Findings], dict[str, str]]:
    """The report of other findings, section by section, without figures."""
    monkeypatch.setattr("toolkit.scaling.sparsity.figures.sparsity_figures", lambda *arguments: [])
    monkeypatch.setattr("toolkit.scaling.page.page.write_page", lambda *arguments: None)
    monkeypatch.setattr("toolkit.scaling.sweep_board.write_sweep_board", lambda *arguments: None)
    return lambda found: by_section(write_sparsity_report(found).read_text())


def by_section(text: str) -> dict[str, str]:
    parts = text.split("\n## ")
    return {part.partition("\n")[0]: part for part in parts[1:]}


@pytest.mark.slow
def test_cut_off_after_the_grid_only_what_is_left_is_trained(finished: Finished) -> None:
    assert len(finished.before) == SEARCHED + GRID
    assert len(finished.after) == TESTED
    assert not set(finished.before) & set(finished.after)
    with (finished.folder / "results.csv").open() as table:
        assert [row["run"] for row in csv.DictReader(table)] == [*finished.before, *finished.after]


@pytest.mark.slow
def test_begun_again_it_trains_nothing_and_predicts_what_it_did(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, kept = Trained(), []
    trained.watch(monkeypatch)

    def report(found: Findings) -> Path:
        kept.append(found)
        return finished.folder / "report.md"

    conduct_sparsity(read(finished.text, finished.folder), False, report)
    assert trained == []
    assert (finished.folder / "prediction.json").read_text() == finished.predicted
    (again,) = kept
    assert again.tests == finished.found.tests
    assert again.rates == finished.found.rates
    assert [row.run for row in again.rows] == [row.run for row in finished.found.rows]


@pytest.mark.slow
def test_every_stage_used_what_the_one_before_found(finished: Finished) -> None:
    found, base = finished.found, finished.found.study.base
    assert base.rates == {family: rate.rate for family, rate in found.rates.items()}
    assert json.loads((finished.folder / "learning_rates.json").read_text()) == base.rates
    for row in [*found.rows, *found.next_rows]:
        assert row.learning_rate == base.rates[row.family]  # muP: one peak at every width
    predictions = json.loads(finished.predicted)
    assert [(row.family, row.budget, row.dim) for row in found.next_rows] == [
        (each["family"], each["budget"], each["dim"]) for each in predictions
    ]
    assert all(row.bits_per_byte < 8 for row in [*found.rows, *found.searched, *found.next_rows])


@pytest.mark.slow
def test_the_report_has_every_section_and_the_findings_own_numbers(finished: Finished) -> None:
    text, found = (finished.folder / "report.md").read_text(), finished.found
    sections = by_section(text)
    assert text.startswith(f"# {TITLE}\n")
    assert tuple(sections) == SECTIONS
    for test in found.tests:
        assert f"{test.prediction.loss:.3f} ({test.prediction.low:.3f} to" in sections["The prediction, and its test"]
        assert f"| {test.loss:.3f} |" in sections["The prediction, and its test"]
    assert found.laws is not None
    for entry in found.laws.multipliers:
        assert f"| `{entry.family}` | {number(entry.budget)} | {entry.dim}" in sections["By a law of all runs"]
    for title, rows in (
        ("Every run", found.rows),
        ("The runs of the prediction", found.next_rows),
        ("The runs of the search", found.searched),
    ):
        assert rows
        assert all(f"`{row.run}`" in sections[title] for row in rows)
    page = (finished.folder / "report.html").read_text()
    assert all(title in page for title in SECTIONS)


@pytest.mark.slow
def test_limits_tell_edges_failed_predictions_and_what_diverged(
    finished: Finished, rewrite: Callable[[Findings], dict[str, str]]
) -> None:
    found = finished.found
    rates = {family: replace(rate, at_edge=family == "moe", vertex=False) for family, rate in found.rates.items()}
    dense, moe = (replace(test.prediction, at_edge=test.prediction.family == "dense") for test in found.tests)
    rows = [replace(row, bits_per_byte=math.nan) if row.family == "moe" else row for row in found.next_rows]
    held = replace(dense, low=0.0, high=9.0)
    worse = replace(found, rates=rates, next_rows=rows, tests=prediction.tested([held, moe], rows))
    limits = rewrite(worse)["What this cannot claim"]
    assert "learning rate tried is the least or the largest for `moe`: theirs may not be best" in limits
    assert "The law's prediction failed for `moe`:" in limits
    assert "at the edge of those allowed for `dense`" in limits
    assert "Learning rates were searched at width 12 alone and carried to the others by `mup`" in limits
    assert (
        f"Of the prediction's runs: Diverged, and left out of every mean, which flatters their cells: `{rows[1].run}`"
        in limits
    )
    assert "Of the prediction's runs: 2 of 2 runs saw their text more than once" in limits

    even = {family: replace(rate, at_edge=False) for family, rate in found.rates.items()}
    well = [
        prediction.Tested(replace(test.prediction, at_edge=False, low=0.0, high=9.0), test.measured)
        for test in found.tests
    ]
    limits = rewrite(replace(found, rates=even, tests=well))["What this cannot claim"]
    for sentence in ("least or the largest for", "prediction failed", "edge of those allowed", "Diverged"):
        assert sentence not in limits


@pytest.mark.slow
def test_without_a_law_the_report_says_so_and_has_the_rest(
    finished: Finished, rewrite: Callable[[Findings], dict[str, str]]
) -> None:
    bare = replace(finished.found, laws=None, no_laws="runs=2: too few", tests=[], next_rows=[])
    sections = rewrite(bare)
    assert "No law was fitted: runs=2: too few." in sections["By a law of all runs"]
    assert "None was made" in sections["The prediction"]
    assert "The law rests on" not in sections["What this cannot claim"]
    assert "What it costs besides" in sections


@pytest.mark.slow
def test_code_that_differs_between_stages_is_told(
    finished: Finished, rewrite: Callable[[Findings], dict[str, str]]
) -> None:
    newer = [replace(row, code="newer") for row in finished.found.next_rows]
    assert (
        "different versions of the code" in rewrite(replace(finished.found, next_rows=newer))["What this cannot claim"]
    )
    assert "different versions of the code" not in rewrite(finished.found)["What this cannot claim"]


@pytest.mark.slow
def test_a_grid_that_all_diverged_is_no_report(finished: Finished) -> None:
    rows = [replace(row, bits_per_byte=math.nan) for row in finished.found.rows]
    with pytest.raises(ValueError, match="rows='18 runs': it must be at least one that ended with a finite loss"):
        write_sparsity_report(replace(finished.found, rows=rows))
