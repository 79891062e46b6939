"""Table, summary and report of an extension from figures that are made up."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from toolkit.scaling.extension.claims import findings
from toolkit.scaling.extension.evaluation import PASSKEY, POSITION, SLIDING
from toolkit.scaling.extension.figures import draw_passkeys, draw_positions
from toolkit.scaling.extension.methods import METHODS, Stretch, longrope_factors
from toolkit.scaling.extension.report import write_board
from toolkit.scaling.extension.summary import ExtensionSummary, summarise
from toolkit.scaling.extension.table import AS_IS, TUNED, Measurement, MeasurementTable
from toolkit.scaling.extension.tables import by_length, effective_table, method_table, spent_table

LENGTHS, DEPTHS = (8, 16, 32), (0.0, 1.0)
KEYS = {
    ("none", AS_IS): (1.0, 0.2, 0.0),
    ("yarn", AS_IS): (0.6, 0.5, 0.4),
    ("none", TUNED): (0.9, 0.9, 0.2),
    ("yarn", TUNED): (0.9, 0.85, 0.86),
}
"""Passkeys found at each length, mean over the depths."""


def made_up(seeds: int = 1) -> list[Measurement]:
    """Losses are 2 + 0.1 for each doubling (none) or 2 (yarn), 0.5 less when tuned; seeds differ by 0.2."""
    rows = []
    for seed in range(seeds):
        rows.append(Measurement(seed, "none", "base", 8, "training_flops", "", 1e9, 50))
        for (method, stage), found in KEYS.items():
            for doubling, length in enumerate(LENGTHS):
                loss = 2 + 0.2 * seed + 0.1 * doubling * (method == "none") - 0.5 * (stage == TUNED)
                rows.append(Measurement(seed, method, stage, length, SLIDING, "", loss, 100))
                rows.append(Measurement(seed, method, stage, length, POSITION, "0-8", loss + 1, 10))
                rows.append(Measurement(seed, method, stage, length, POSITION, f"8-{length}", loss, 10))
                for depth in DEPTHS:
                    value = found[doubling] + (0.05 if depth else -0.05) * (0 < found[doubling] < 0.95)
                    rows.append(Measurement(seed, method, stage, length, PASSKEY, f"{depth:g}", value, 20))
            if stage == TUNED:
                rows.append(Measurement(seed, method, TUNED, 16, "training_flops", "", 1e8, 7))
    return rows


@pytest.fixture
def summary() -> ExtensionSummary:
    return summarise(made_up())


def test_a_table_reads_back_what_was_added_and_says_what_it_has(tmp_path: Path) -> None:
    table, rows = MeasurementTable(tmp_path / "deep" / "results.csv"), made_up(2)
    assert table.read() == []
    rows.append(replace(rows[0], metric="none, yet", value=math.nan))
    table.extend(rows[:7])
    table.extend(rows[7:])
    assert [str(row) for row in table.read()] == [str(row) for row in rows]  # as text: nan is not equal to itself
    assert table.has(1, "yarn", TUNED, 32, SLIDING)
    assert not table.has(2, "yarn", TUNED, 32, SLIDING)


def test_a_table_of_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("run,value\na,1\n")
    with pytest.raises(ValueError, match="it must be a table with the columns seed, method, stage"):
        MeasurementTable(tmp_path / "results.csv").read()


def test_an_effective_length_is_measured_by_what_the_base_model_finds(summary: ExtensionSummary) -> None:
    """yarn as is keeps two thirds of its own score at 8, but has 0.6 of the base's: at no length is it enough."""
    found = {key: summary.effective_lengths(*key) for key in KEYS}
    assert found == {
        ("none", AS_IS): {0: 8},
        ("yarn", AS_IS): {0: 0},
        ("none", TUNED): {0: 16},
        ("yarn", TUNED): {0: 32},
    }


def test_means_are_taken_over_depths_and_then_over_seeds() -> None:
    summary = summarise(made_up(3))
    mean = summary.mean("yarn", AS_IS, 16, SLIDING)
    assert mean.value == pytest.approx(2.2)
    assert mean.seeds == 3
    assert mean.half is not None
    assert summary.mean("yarn", AS_IS, 16, PASSKEY).value == pytest.approx(0.5)
    assert summary.by_position("none", AS_IS, 32) == [(0, 8, pytest.approx(3.4)), (8, 32, pytest.approx(2.4))]
    depths, grid = summary.passkey_grid("yarn", AS_IS)
    assert depths == [0.0, 1.0]
    np.testing.assert_allclose(grid, [[0.55, 0.45, 0.35], [0.65, 0.55, 0.45]])


def test_without_the_baseline_there_is_nothing_to_report() -> None:
    with pytest.raises(ValueError, match="with an evaluation of 'none' as is"):
        summarise([row for row in made_up() if row.method != "none"])


def test_tables_have_a_row_for_each_method_and_stage(summary: ExtensionSummary) -> None:
    lines = by_length(summary, SLIDING, "{:.2f}").splitlines()
    assert lines[0] == "| method | stage | 8 | 16 | 32 |"
    assert lines[2:] == [
        "| `none` | as is | 2.00 | 2.10 | 2.20 |",
        "| `yarn` | as is | 2.00 | 2.00 | 2.00 |",
        "| `none` | tuned | 1.50 | 1.60 | 1.70 |",
        "| `yarn` | tuned | 1.50 | 1.50 | 1.50 |",
    ]
    assert "| `yarn` | as is | none | 0.60 | 0.40 |" in effective_table(summary)
    assert "| `yarn` | tuned | 32 | 0.90 | 0.86 |" in effective_table(summary)
    spent = spent_table(summary).splitlines()[2:]
    assert [line.split(" | ")[:4] for line in spent] == [
        ["| base", "", "8", "50"],
        ["| tuned", "`none`", "16", "7"],
        ["| tuned", "`yarn`", "16", "7"],
    ]


def test_the_methods_table_tells_lists_by_their_runs() -> None:
    stretch = Stretch(length=128, factor=16.0, rotary_dim=32, base=10_000.0)
    factors = longrope_factors(stretch)
    kept = factors.count(1.0)
    lines = method_table(METHODS, stretch).splitlines()
    assert len(lines) == len(METHODS) + 2
    assert f"short_factors=<16 x 1.0>, long_factors=<{kept} x 1.0 then {16 - kept} x 16.0>" in lines[-1]


def test_what_was_found_names_the_best_and_what_pays(summary: ExtensionSummary) -> None:
    base, *rest = findings(summary, tuned_at=16)
    assert "finds 1.00 of the passkeys at L = 8" in base
    assert "as is: the lowest loss is that of `yarn`, 2.000 bits per byte (`none` 2.200" in rest[0]
    assert "most are found by `yarn`, 0.40 (`none` 0.00)" in rest[1]
    assert rest[2].endswith(": no method.")
    assert rest[5].endswith(": `none`, `yarn` (fine-tuned at 16).")


def test_a_base_model_that_has_not_learned_the_task_is_said_to() -> None:
    rows = [replace(row, value=0.0) if row.metric == PASSKEY else row for row in made_up()]
    lines = findings(summarise(rows), tuned_at=16)
    assert "it has hardly learned the task" in lines[0]
    assert any("no method finds any" in line for line in lines)
    assert summarise(rows).effective_lengths("none", AS_IS) == {0: 0}


def test_figures_show_every_method(summary: ExtensionSummary) -> None:
    positions, keys = draw_positions(summary, tuned_at=16), draw_passkeys(summary)
    for axis, stage in zip(positions.axes, (AS_IS, TUNED), strict=True):
        lines = {line.get_label(): line for line in axis.get_lines()}
        expected = [loss for *_, loss in summary.by_position("none", stage, 32)]
        np.testing.assert_allclose(lines["none"].get_ydata(), expected)
        np.testing.assert_allclose(lines["none"].get_xdata(), [4, 20])
    images = [axis.images[0].get_array() for axis in keys.axes if axis.images]
    for image, (method, stage) in zip(images, KEYS, strict=False):
        np.testing.assert_allclose(image, summary.passkey_grid(method, stage)[1])


def test_the_board_has_scalars_for_each_method_and_the_figures(summary: ExtensionSummary, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # the second replaces the first
        write_board(tmp_path / "board", summary, {"empty": Figure()})
    events = EventAccumulator(str(tmp_path / "board" / "yarn-tuned")).Reload()
    scalars = [(event.step, event.value) for event in events.Scalars(f"over_length/{PASSKEY}")]
    assert scalars == [
        (length, pytest.approx(value)) for length, value in zip(LENGTHS, KEYS["yarn", TUNED], strict=True)
    ]
    assert EventAccumulator(str(tmp_path / "board" / "figures")).Reload().Tags()["images"] == ["empty"]
    assert len(list((tmp_path / "board" / "figures").iterdir())) == 1
