"""A run's row in the table: what it reached, beside what was planned."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from toolkit.compute.cost import KINDS, Cost
from toolkit.data import Corpus
from toolkit.parallel import ParallelConfig
from toolkit.scaling.plan import PlannedRun
from toolkit.scaling.results import RunResult

if TYPE_CHECKING:
    from toolkit.training.fitted import Fitted


def until_diverged(run: PlannedRun, steps: int, seconds: float) -> Fitted:
    """What a run reached that could take no more than ``steps`` steps."""
    from toolkit.training.fitted import Fitted

    tokens, flops = steps * run.training.tokens_per_step, run.cost.training_flops["exact"]
    return Fitted(steps, tokens, tokens * flops, math.nan, math.nan, seconds, math.nan, math.nan, math.nan)


def run_row(
    run: PlannedRun, fitted: Fitted, corpus: Corpus, seconds: float, parallel: ParallelConfig, code: str
) -> RunResult:
    """The row of a run that has ended.

    Args:
        run: as planned.
        fitted: what it reached.
        corpus: what it was trained on.
        seconds: isolated seconds of one step.
        parallel: the processes that trained it.
        code: version of the code that did.
    """
    flops = {name: fitted.tokens * per_token for name, per_token in run.cost.training_flops.items()}
    return RunResult(
        run=run.name,
        family=run.family,
        budget=run.budget,
        dim=run.dim,
        seed=run.seed,
        parameters=run.cost.total_parameters,
        active_parameters=run.cost.total_active_parameters,
        steps=fitted.steps,
        tokens=fitted.tokens,
        epochs=corpus.epochs(fitted.tokens),
        flops_planned=run.flops["exact"],
        flops_spent=fitted.flops,
        flops_palm=flops["palm"],
        flops_hardware=flops["hardware"],
        learning_rate=run.training.learning_rate,
        bits_per_byte=fitted.bits_per_byte,
        train_loss=fitted.train_loss,
        seconds=fitted.steps * seconds,
        seconds_wall=fitted.seconds,
        dropped_share=fitted.dropped_share,
        max_violation=fitted.max_violation,
        token_entropy=fitted.token_entropy,
        layers=len(run.model.blocks),
        batch_size=run.training.batch_size,
        **_parameter_counts(run.cost),
        training_bytes=round(run.memory(parallel).training),
        stage=run.stage,
        code=code,
        corpus=corpus.digest[:16],
    )


def _parameter_counts(cost: Cost) -> dict[str, int]:
    """The columns of a row that count parameters by kind."""
    columns = {"experts": "expert", "shared_experts": "shared_expert", "norms": "norm"}
    counts = {f"{columns.get(kind, kind)}_parameters": cost.parameters.get(kind, 0) for kind in KINDS}
    return counts | {"active_expert_parameters": cost.active_parameters.get("experts", 0)}
