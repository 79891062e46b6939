"""What a run writes down, read back from its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_cases import MODEL, WINDOWS, budget, corpus, metrics, training

from toolkit.training import Fitted, fit, learning_rate_factor

CONFIG = training(steps=24, evaluations=3, log_every=6)
HPARAMS = {"family": "moe", "dim": 16, "learning_rate": 3e-3}
STEPS = (1, 6, 12, 18, 24)
VALIDATED = (8, 16, 24)
STEP_TOKENS = 4 * 32


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fitted]:
    folder = tmp_path_factory.mktemp("run")
    fitted = fit(MODEL, CONFIG, corpus(), folder, budget(CONFIG), validation_count=WINDOWS, hparams=HPARAMS)
    return folder, fitted


@pytest.fixture(scope="module")
def board(ended: tuple[Path, Fitted]) -> EventAccumulator:
    accumulator = EventAccumulator(str(ended[0]), size_guidance={"scalars": 0, "tensors": 0})
    return accumulator.Reload()


def test_the_table_s_rows(ended: tuple[Path, Fitted]) -> None:
    rows = metrics(ended[0])
    losses = [row for row in rows if "train/loss" in row]
    validations = [row for row in rows if "validation/bits_per_byte" in row]
    assert [row["step"] for row in losses] == list(STEPS)
    assert [row["step"] for row in validations] == list(VALIDATED)
    assert len(rows) == len(losses) + len(validations)
    assert validations[-1]["validation/bits_per_byte"] == ended[1].bits_per_byte
    for row in rows:
        assert row["tokens"] == row["step"] * STEP_TOKENS
        assert row["flops"] == pytest.approx(budget(CONFIG, steps=row["step"]))
        assert row["gigaflops"] == round(row["flops"] / 1e9)
    for row in losses:
        assert row["train/learning_rate"] == pytest.approx(3e-3 * learning_rate_factor(int(row["step"]) - 1, CONFIG))


def test_time_goes_forward_and_adds_up_to_the_run_s(ended: tuple[Path, Fitted]) -> None:
    rows = [json.loads(line) for line in (ended[0] / "metrics.jsonl").read_text().splitlines()]
    times = [row["milliseconds"] for row in rows]
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] == round(ended[1].seconds * 1e3)


@pytest.mark.parametrize(
    ("suffix", "axis"),
    [("", "step"), ("_by_tokens", "tokens"), ("_by_gigaflops", "gigaflops"), ("_by_milliseconds", "milliseconds")],
)
@pytest.mark.parametrize("tag", ["train/loss", "train/learning_rate", "validation/bits_per_byte"])
def test_curves_over_four_axes(
    ended: tuple[Path, Fitted], board: EventAccumulator, tag: str, suffix: str, axis: str
) -> None:
    rows = [json.loads(line) for line in (ended[0] / "metrics.jsonl").read_text().splitlines()]
    events = board.Scalars(tag + suffix)
    assert [event.step for event in events] == [row[axis] for row in rows if tag in row]
    assert [event.value for event in events] == pytest.approx([row[tag] for row in rows if tag in row])


def test_the_custom_layout_shows_the_losses_against_each_axis(board: EventAccumulator) -> None:
    from tensorboard.plugins.custom_scalar import layout_pb2

    (event,) = board.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout()
    layout.ParseFromString(event.tensor_proto.string_val[0])
    (category,) = layout.category
    titles = {chart.title: list(chart.multiline.tag) for chart in category.chart}
    assert set(titles) == {f"against {axis}" for axis in ("step", "tokens", "gigaflops", "milliseconds")}
    shown = {tag for tags in titles.values() for tag in tags}
    assert shown <= set(board.Tags()["scalars"])
    assert len(shown) == 8


def test_throughput_is_logged(board: EventAccumulator) -> None:
    for tag in ("samples_per_sec", "items_per_sec", "flops_per_sec", "batches_per_sec"):
        values = [event.value for event in board.Scalars(f"train/device/{tag}")]
        assert values
        assert all(value > 0 for value in values)
    ratios = {
        "train/device/items_per_sec": STEP_TOKENS,
        "train/device/samples_per_sec": 4,
        "train/device/flops_per_sec": budget(CONFIG, steps=1),
    }
    batches = [event.value for event in board.Scalars("train/device/batches_per_sec")]
    for tag, share in ratios.items():
        assert [event.value for event in board.Scalars(tag)] == pytest.approx(
            [share * rate for rate in batches], rel=1e-4
        )


def test_where_there_is_no_mfu_the_board_says_why(board: EventAccumulator) -> None:
    assert not [tag for tag in board.Tags()["scalars"] if "mfu" in tag]
    (event,) = board.Tensors("mfu/text_summary")
    assert b"peak FLOP/s" in event.tensor_proto.string_val[0]


def test_the_hparams_tab_has_settings_and_the_final_metric(ended: tuple[Path, Fitted], board: EventAccumulator) -> None:
    from tensorboard.plugins.hparams import plugin_data_pb2

    records = {}
    for tag, content in board.PluginTagToContent("hparams").items():
        data = plugin_data_pb2.HParamsPluginData()
        data.ParseFromString(content)
        records[tag] = data
    assert set(records) == {
        "_hparams_/experiment",
        "_hparams_/session_start_info",
        "_hparams_/session_end_info",
    }
    experiment = records["_hparams_/experiment"].experiment
    assert {info.name for info in experiment.hparam_infos} == set(HPARAMS)
    assert [info.name.tag for info in experiment.metric_infos] == ["hp/bits_per_byte"]
    values = records["_hparams_/session_start_info"].session_start_info.hparams
    assert values["family"].string_value == "moe"
    assert values["dim"].number_value == 16
    shown = [event for event in board.Scalars("hp/bits_per_byte") if event.value == event.value]  # declared as nan
    assert [event.step for event in shown] == list(VALIDATED)
    assert shown[-1].value == pytest.approx(ended[1].bits_per_byte)
    assert "hp_metric" not in board.Tags()["scalars"]
