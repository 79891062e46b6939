"""Which run may start, from which checkpoint, and how long that is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.scaling import Family, Grid, IsoFLOP, ModelShape, StudyFolder, plan_isoflop
from toolkit.scaling.beginnings import Beginnings
from toolkit.scaling.plan.branches import BranchPoint
from toolkit.training import TrainingConfig

BASE = TrainingConfig(steps=10**6, context=32, batch_size=1, schedule="wsd", warmup_steps=5, decay_share=0.25)
GRID = Grid(tuple(IsoFLOP(flops, (16,)) for flops in (3e8, 6e8, 9e8, 1.2e9)), seeds=1)
LONG, OTHER, SHORT, ALONE = RUNS = plan_isoflop(GRID, ModelShape((Family("dense"),), layers=1), 256, BASE)
"""Names only: who branches from whom is said below."""


@pytest.fixture
def beginnings(tmp_path: Path) -> Beginnings:
    points = {OTHER.name: BranchPoint(LONG.name, 30), SHORT.name: BranchPoint(LONG.name, 20)}
    return Beginnings(StudyFolder(tmp_path), points)


def keep(beginnings: Beginnings, *steps: int) -> dict[int, Path]:
    folder = beginnings.folder.run(LONG.name) / "checkpoints"
    folder.mkdir(parents=True)
    paths = {step: folder / f"step{step}.ckpt" for step in steps}
    for path in (*paths.values(), folder / "last.ckpt"):
        path.write_bytes(b"weights")
    return paths


def test_a_branch_waits_while_its_trunk_waits_or_runs(beginnings: Beginnings) -> None:
    assert beginnings.next([SHORT, OTHER, LONG, ALONE], []) is LONG
    assert beginnings.next([SHORT, OTHER, ALONE], [LONG]) is ALONE
    assert beginnings.next([SHORT, OTHER], [LONG, ALONE]) is None
    assert beginnings.next([SHORT, OTHER], [ALONE]) is SHORT
    assert beginnings.next([OTHER], [SHORT]) is OTHER
    assert beginnings.next([], []) is None


def test_without_branches_the_first_is_next(beginnings: Beginnings) -> None:
    none = Beginnings(beginnings.folder, {})
    assert none.next([SHORT, LONG], []) is SHORT
    assert none.next([SHORT], [LONG]) is SHORT
    assert none.keep_at(LONG) == []
    assert none.checkpoint(SHORT) is None


def test_a_trunk_keeps_what_its_branches_begin_from(beginnings: Beginnings) -> None:
    assert beginnings.keep_at(LONG) == [20, 30]
    assert beginnings.keep_at(SHORT) == beginnings.keep_at(ALONE) == []
    paths = keep(beginnings, 20, 30)
    assert beginnings.checkpoint(SHORT) == paths[20]
    assert beginnings.checkpoint(OTHER) == paths[30]
    assert beginnings.checkpoint(LONG) is beginnings.checkpoint(ALONE) is None


def test_a_branch_whose_trunk_kept_nothing_begins_at_step_0_and_says_so(beginnings: Beginnings) -> None:
    with pytest.warns(UserWarning, match=f"{SHORT.name} is trained from step 0: there is no .*step20.ckpt"):
        assert beginnings.checkpoint(SHORT) is None


def test_a_checkpoint_goes_with_the_last_run_that_begins_from_it(beginnings: Beginnings) -> None:
    points = {**beginnings.points, ALONE.name: BranchPoint(LONG.name, 20)}
    beginnings = Beginnings(beginnings.folder, points)
    paths = keep(beginnings, 20, 30)

    def left() -> set[int]:
        return {step for step, path in paths.items() if path.exists()}

    for done, expected in (
        ([], {20, 30}),
        ([LONG.name], {20, 30}),
        ([LONG.name, SHORT.name], {20, 30}),  # another begins from the same
        ([LONG.name, SHORT.name, OTHER.name], {20}),
        ([LONG.name, SHORT.name, OTHER.name, ALONE.name], set()),
    ):
        beginnings.discard(done)
        beginnings.discard(done)
        assert left() == expected
    assert (paths[20].parent / "last.ckpt").exists()
