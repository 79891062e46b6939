"""A study's folder as training leaves it, made up, and its figures and page."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_study import run_result, study

from toolkit.data import ByteTokenizer
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, MoEConfig
from toolkit.scaling.figures.predictions import Prediction
from toolkit.scaling.folder import StudyFolder
from toolkit.scaling.multiplier import ComputeMultiplier, Estimate, compute_multiplier
from toolkit.scaling.page.isoflop import FittedCurve
from toolkit.scaling.page.page import write_page
from toolkit.scaling.page.study_figures import study_figures
from toolkit.scaling.report_figure import ReportFigure
from toolkit.scaling.results import RunResult

COMMAND = "python experiments/dense_vs_sparse.py --preset demo"
BEST = "moe+window-dim48-flops1e+12-seed0"


def write_run(folder: Path, row: RunResult) -> None:
    """Records of a run, and of one with a router its loads."""
    folder.mkdir(parents=True)
    steps = np.linspace(1, row.steps, 12).round().astype(int)
    records = [
        {"step": int(step), "flops": row.flops_spent * step / row.steps, "train/loss": 5 - 2 * step / row.steps}
        for step in steps
    ]
    last = {"step": row.steps, "flops": row.flops_spent, "validation/bits_per_byte": row.bits_per_byte}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*records, last]))
    if not math.isnan(row.max_violation):
        rng = np.random.default_rng(row.seed)
        np.savez(folder / "load.npz", steps=steps, **{f"layer{at}": rng.dirichlet(np.ones(4), 12) for at in (0, 1)})


def write_checkpoint(folder: Path) -> None:
    """A decoder of two MoE layers, as it was born."""
    block = BlockConfig(AttentionConfig(1, 1, 8), MoEConfig(8, 4, 2))
    config = DecoderConfig(256, 8, (block, block))
    torch.manual_seed(0)
    weights = {f"decoder.{name}": value for name, value in Decoder(config).state_dict().items()}
    (folder / "checkpoints").mkdir()
    torch.save({"state_dict": weights}, folder / "checkpoints" / "last.ckpt")
    (folder / "run.json").write_text(json.dumps({"model": config.to_dict()}))


@pytest.fixture(scope="session")
def rows() -> list[RunResult]:
    """Three families on two budgets, one with a plus in its name."""
    known = [row for row in study(seeds=2, noise=0.01, dims=(32, 48, 64)) if row.budget < 3e12]
    best = replace(run_result("moe+window", 1e12, 48, 0, 1.5), run=BEST)
    return [*known, best]


@pytest.fixture(scope="session")
def multipliers(rows: list[RunResult]) -> list[ComputeMultiplier]:
    """None is finite at equal seconds: one panel has no point."""
    found = compute_multiplier(rows, "moe", resamples=50) + compute_multiplier(rows, "moe+window", resamples=50)
    return [replace(entry, equal_seconds=Estimate(math.inf, None, None, True, False)) for entry in found]


@pytest.fixture(scope="session")
def folder(rows: list[RunResult], tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    made = StudyFolder(tmp_path_factory.mktemp("study"))
    for row in rows:
        write_run(made.run(row.run), row)
    write_checkpoint(made.run(BEST))
    return made


@pytest.fixture(scope="session")
def figures(folder: StudyFolder, rows: list[RunResult], multipliers: list[ComputeMultiplier]) -> list[ReportFigure]:
    """Every figure that there is."""
    size = np.geomspace(20_000, 100_000, 20)
    law = FittedCurve("dense", 1e12, size, np.full(20, 2.0), np.full(20, 1.9), np.full(20, 2.1))
    text = np.frombuffer(b"def f(x):\n    return x + 41\n" * 40, dtype=np.uint8)[: 16 * 33].astype(np.int64)
    return study_figures(
        folder,
        rows,
        multipliers,
        command=COMMAND,
        curves=[law],
        predictions=[Prediction(rows[0].run, "dense", 2.0, 2.1, 1.9, 2.2), Prediction(rows[1].run, "moe", 2.2, 2.1)],
        windows=torch.from_numpy(text).view(16, 33),
        tokenizer=ByteTokenizer(),
    )


MARKDOWN = """# A study

**Question.** Is `a < b`?

## Compute multiplier

| family | budget (FLOPs) | **multiplier** | |
| --- | --- | --- | --- |
| `moe` | 1e12 | 9.50 (9.10 to 9.90) | won |
| `moe+window` | 3e11 | 10.20 (9.80 to 11.00) | |
| `dense` | 1,000 | unknown | ends & here |

## Figures

{figures}

## The study

- Machine: an imagined one

<details><summary>Resolved `configuration`</summary>

```yaml
grid: {{seeds: 2}}
```

</details>
"""


@pytest.fixture(scope="session")
def markdown(figures: list[ReportFigure]) -> str:
    """A report in the forms that reports use."""
    drawn = [f"![{figure.path.stem}]({figure.path.name})\n\n{figure.described()}" for figure in figures]
    return MARKDOWN.format(figures="\n\n".join(drawn))


@pytest.fixture(scope="session")
def page(markdown: str, figures: list[ReportFigure], folder: StudyFolder) -> Path:
    return write_page(markdown, figures, folder.path / "report.html", "A study of <families>")
