"""A study of reach: small models, one for each pattern and seed, at equal FLOPs; accuracy against distance."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from toolkit.checks import require, require_positive
from toolkit.data.synthetic import SparseInduction, score
from toolkit.models import Decoder, DecoderConfig
from toolkit.scaling.folder import StudyFolder
from toolkit.scaling.reach.arms import Reach, ReachArm, ReachModel, arm_reach
from toolkit.scaling.reach.table import ReachRow
from toolkit.scaling.row_table import RowTable
from toolkit.training.config import TrainingConfig
from toolkit.training.task_training import TaskRun, step_flops, train_on_task, with_budget

TOLERANCE = 0.01
"""How far the FLOPs of a run may be from the budget."""

EVALUATION_SEED = 1_000_003
"""Of the rows that are asked: no run is trained on them."""


@dataclass(frozen=True)
class ReachTask:
    """The rows: sparse induction, trained on distances from ``nearest`` to the whole row, asked at fixed ones.

    Attributes:
        length, pairs, questions, keys, values, fillers: see :class:`toolkit.data.synthetic.SparseInduction`.
        nearest: the shortest distance trained on.
        distances: those asked.
        rows: questions at each distance.
    """

    length: int = 32
    pairs: int = 3
    questions: int = 3
    keys: int = 3
    values: int = 8
    fillers: int = 1
    nearest: int = 3
    distances: tuple[int, ...] = (3, 6, 9, 12, 15, 18, 24, 31)
    rows: int = 400

    def __post_init__(self) -> None:
        require_positive(rows=self.rows)
        _ = self.training
        require(len(set(self.distances)) == len(self.distances) > 0, "distances", self.distances, "each named once")
        for distance in self.distances:
            self.asked(distance)

    @property
    def training(self) -> SparseInduction:
        """What models are trained on: mixed distances."""
        return self._made((self.nearest, self.length - 1))

    def asked(self, distance: int) -> SparseInduction:
        """What they are asked at ``distance``: of each row the last question."""
        return self._made(distance)

    def _made(self, distance: int | tuple[int, int]) -> SparseInduction:
        sizes = self.pairs, self.questions, self.keys, self.values, self.fillers
        return SparseInduction(self.length, distance, *sizes)


@dataclass(frozen=True)
class ReachRun:
    """One model to train: an arm and a seed."""

    arm: ReachArm
    seed: int
    model: DecoderConfig
    training: TrainingConfig

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.arm.name}-seed{self.seed}"


@dataclass(frozen=True)
class ReachStudy:
    """What is trained and asked, and where it goes.

    Attributes:
        arms: what is compared.
        model: what they share.
        task: what they learn.
        training: how; steps, context and seed are set here.
        flops: training FLOPs of every run, ``exact`` convention.
        seeds: runs of each arm, with seeds 0, 1, ...
        folder: holds results.csv, the curves under runs/ and the report.
        workers: runs at once, a thread each.
        settings: all that determines the results, as text.

    Raises:
        ValueError: if two arms have one name, or the FLOPs are not within 1% of whole steps for each.
    """

    arms: tuple[ReachArm, ...]
    model: ReachModel
    task: ReachTask
    training: TrainingConfig
    flops: float
    seeds: int
    folder: StudyFolder
    workers: int = 2
    settings: str = ""

    def __post_init__(self) -> None:
        require_positive(flops=self.flops, seeds=self.seeds, workers=self.workers)
        names = [arm.name for arm in self.arms]
        require(len(set(names)) == len(names) > 0, "arms", names, "at least one, each with a name of its own")
        for run in self.runs:
            spent = self.spent(run)
            fits = abs(spent / self.flops - 1) <= TOLERANCE
            right = f"within {TOLERANCE:.0%} of whole steps: {run.arm.name} spends {spent:g}"
            require(fits, "flops", self.flops, right)

    @property
    def runs(self) -> tuple[ReachRun, ...]:
        """Every run, seed by seed, so that a study cut off has each pattern once."""
        return tuple(self._run(arm, seed) for seed in range(self.seeds) for arm in self.arms)

    def _run(self, arm: ReachArm, seed: int) -> ReachRun:
        model = self.model.decoder(arm, self.task.training.vocab_size)
        training = replace(self.training, context=self.task.length, seed=seed)
        return ReachRun(arm, seed, model, with_budget(training, model, self.flops))

    @staticmethod
    def spent(run: ReachRun) -> float:
        """Training FLOPs of ``run``."""
        return step_flops(run.model, run.training) * run.training.steps

    def run(self, tell: Callable[[str], None]) -> list[ReachRow]:
        """Train and ask whatever is not done yet; all rows, in planned order. ``tell`` hears of each finished run."""
        table = RowTable(self.folder.path / "results.csv", ReachRow)
        rows = table.read()
        done = {(row.pattern, row.seed) for row in rows}
        todo = [run for run in self.runs if (run.arm.name, run.seed) not in done]
        with ProcessPoolExecutor(self.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = [
                pool.submit(train_and_ask, run, self.model, self.task, self.folder.run(run.name)) for run in todo
            ]
            try:
                for future in as_completed(futures):
                    rows = self._ordered([*rows, *future.result()])
                    table.write(rows)
                    last = future.result()[-1]
                    tell(f"{last.pattern}, seed {last.seed}: loss {last.loss:.3f} after {last.seconds:.0f} s")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return self._ordered(rows)

    def _ordered(self, rows: Sequence[ReachRow]) -> list[ReachRow]:
        place = {(run.arm.name, run.seed): index for index, run in enumerate(self.runs)}
        return sorted(rows, key=lambda row: (place[row.pattern, row.seed], row.distance))


def train_and_ask(run: ReachRun, model: ReachModel, task: ReachTask, folder: Path) -> list[ReachRow]:
    """Train one model, write its curves into ``folder`` and ask it at every distance."""
    from torch.utils.tensorboard import SummaryWriter

    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    decoder = Decoder(run.model)
    reached = arm_reach(model, run.arm, task.length)
    with SummaryWriter(str(folder)) as board:
        spent = train_on_task(decoder, task.training, run.training, board=board)
        decoder.eval()
        rows = []
        for distance in task.distances:
            accuracy = last_accuracy(decoder, task.asked(distance), task.rows)
            board.add_scalar("accuracy_by_distance", accuracy, distance)
            rows.append(_row(run, distance, accuracy, task.rows, reached, spent))
    return rows


def _row(run: ReachRun, distance: int, accuracy: float, rows: int, reached: Reach, spent: TaskRun) -> ReachRow:
    return ReachRow(
        pattern=run.arm.name,
        seed=run.seed,
        distance=distance,
        accuracy=accuracy,
        rows=rows,
        reached=bool(reached.possible[distance]),
        certain=bool(reached.certain[distance]),
        value_reached=bool(reached.value[distance]),
        steps=spent.steps,
        flops=spent.flops,
        loss=spent.loss,
        seconds=spent.seconds,
    )


def last_accuracy(decoder: Decoder, task: SparseInduction, rows: int) -> float:
    """Share of rows in which the last question, whose distance the task sets, is answered rightly."""
    result = score(lambda input_ids: decoder(input_ids).logits, task, rows, EVALUATION_SEED, batch_size=100)
    return float(result.correct[:, -1].double().mean())
