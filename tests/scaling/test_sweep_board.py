"""TensorBoard itself reads the sweep as one HParams view, all families on one chart, and the report's figures."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_study import run_result, study
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from toolkit.scaling.figures import plot_isoflop
from toolkit.scaling.results import RunResult
from toolkit.scaling.sweep_board import METRICS, write_sweep_board

ROWS = [row for row in study(seeds=2, noise=0.01, dims=(32, 64)) if row.budget < 3e12]
ROWS += [run_result("moe+window", 1e12, 64, 0, math.nan), run_result("moe+window", 1e12, 64, 1, 2.0)]

SEARCHED = [  # of a learning rate, at a width and a budget that the grid has not; their names sort first
    replace(run_result("dense", 1e10, 16, 0, 1.0), run="dense-dim16-flops1e10-rate0.001"),
    replace(run_result("moe", 1e10, 16, 0, 1.0), run="aaa-moe-dim16-flops1e10-rate0.001"),
]
EVERY = [*ROWS, *SEARCHED]


def write_run(folder: Path, row: RunResult) -> None:
    """The events of a run as training leaves them: settings, one declared metric, curves."""
    settings = {"family": row.family, "budget": row.budget, "dim": row.dim, "seed": row.seed}
    settings |= {"learning_rate": row.learning_rate, "steps": row.steps}
    with SummaryWriter(str(folder / row.run)) as board:
        for summary in hparams(settings, {"hp/bits_per_byte": math.nan}):
            board._get_file_writer().add_summary(summary)
        board.add_scalar("hp/bits_per_byte", math.nan, 0)
        board.add_scalar("hp/bits_per_byte", row.bits_per_byte, row.steps)
        board.add_scalar("train/loss", 5.0, 1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "runs"
    for row in EVERY:
        write_run(folder, row)
    figure = plot_isoflop([row for row in ROWS if math.isfinite(row.bits_per_byte)], folder.parent / "isoflop.png")
    for _ in range(2):  # the second takes the place of the first
        write_sweep_board(folder.parent, ROWS, [figure], SEARCHED)
    return folder


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def session_groups(folder: Path) -> tuple[api_pb2.Experiment, list]:  # type: ignore[type-arg]
    """What TensorBoard's HParams tab asks its backend for."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    context = backend_context.Context(TBContext(data_provider=provider, logdir=str(folder)))
    metadata = context.hparams_metadata(RequestContext(), "")
    told = context.experiment_from_metadata(RequestContext(), "", True, metadata, None)
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=1000, allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_RUNNING]
    )
    request.allowed_statuses.append(api_pb2.STATUS_SUCCESS)
    answer = list_session_groups.Handler(RequestContext(), context, "", request).run()
    return told, list(answer.session_groups)


def test_one_hparams_view_over_all_runs(runs: Path) -> None:
    experiment, groups = session_groups(runs)
    assert {metric.name.tag for metric in experiment.metric_infos} == set(METRICS)
    families = next(info for info in experiment.hparam_infos if info.name == "family").domain_discrete
    assert [value.string_value for value in families.values] == ["dense", "moe", "moe+window"]
    widths = next(info for info in experiment.hparam_infos if info.name == "dim").domain_discrete
    assert [value.number_value for value in widths.values] == sorted({row.dim for row in EVERY})
    assert len(groups) == len(EVERY)
    for group in groups:
        settings = {name: value.string_value or value.number_value for name, value in group.hparams.items()}
        key = tuple(settings[name] for name in ("family", "budget", "dim", "seed"))
        [row] = [row for row in EVERY if (row.family, row.budget, row.dim, row.seed) == key]
        values = {metric.name.tag: metric.value for metric in group.metric_values}
        for name, of_row in METRICS.items():
            if math.isnan(of_row(row)):
                assert math.isnan(values.get(name, math.nan))
            else:
                assert values[name] == pytest.approx(of_row(row), rel=1e-6)  # TensorBoard holds fp32


def test_without_the_board_the_view_lacks_most_metrics(tmp_path: Path) -> None:
    """What the test above checks is the board's doing."""
    write_run(tmp_path, ROWS[0])
    experiment, _ = session_groups(tmp_path)
    assert {metric.name.tag for metric in experiment.metric_infos} == {"hp/bits_per_byte"}


def test_every_run_declares_the_sweeps_columns(runs: Path) -> None:
    """Whichever TensorBoard meets first: of some of its readers the order is not told."""
    for row in EVERY:
        experiment, groups = session_groups(runs / row.run)
        assert {metric.name.tag for metric in experiment.metric_infos} == set(METRICS)
        assert len(groups) == 1


def test_best_loss_of_every_family_on_one_chart(runs: Path) -> None:
    events = read(runs / "_study")
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("study/")]
    assert {tag.rpartition("/")[2] for tag in tags} == {row.family for row in ROWS}
    for tag in tags:
        family = tag.rpartition("/")[2]
        points = {event.step: event.value for event in events.Scalars(tag)}
        mine = [row for row in ROWS if row.family == family and math.isfinite(row.bits_per_byte)]
        best = {
            round(budget / 1e9): min(row.bits_per_byte for row in mine if row.budget == budget)
            for budget in {row.budget for row in mine}
        }
        assert points == pytest.approx(best, rel=1e-6)
    [config] = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(config.tensor_proto.string_val[0])
    [category] = layout.category
    [chart] = category.chart
    matched = {tag for tag in tags for pattern in chart.multiline.tag if re.match(pattern, tag)}
    assert matched == set(tags)
    for pattern in chart.multiline.tag:  # a plus in a name is no pattern, and "moe" is not "moe+window"
        assert sum(re.match(pattern, tag) is not None for tag in tags) == 1


def test_figures_are_images(runs: Path) -> None:
    events = read(runs / "_study")
    [image] = events.Images("figures/isoflop")
    width, height = np.frombuffer((runs.parent / "isoflop.png").read_bytes()[16:24], dtype=">u4")
    assert (image.width, image.height) == (width, height)
    [caption] = events.Tensors("figures/isoflop/text_summary")
    assert b"IsoFLOP curves" in caption.tensor_proto.string_val[0]


def test_a_second_board_takes_the_place_of_the_first(runs: Path) -> None:
    assert len(list((runs / "_study").glob("events*"))) == 1
    assert len(list((runs / ROWS[0].run).glob("events*"))) == 3  # the run's own, the declaration, the sweep's values
    assert len(read(runs / ROWS[0].run).Scalars("hp/seconds")) == 1


def test_small_budgets_have_a_finer_axis(tmp_path: Path) -> None:
    rows = [run_result("dense", budget, 32, 0, 3.0) for budget in (1.1e8, 1.2e8)]
    write_sweep_board(tmp_path, rows)
    events = read(tmp_path / "runs" / "_study")
    assert [event.step for event in events.Scalars("study/bits_per_byte_by_megaflops/dense")] == [110, 120]


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows"):
        write_sweep_board(tmp_path, [])
    assert not list(tmp_path.iterdir())
