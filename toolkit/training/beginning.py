"""Where a run begins: a new folder, its own last checkpoint or a trunk's; and the settings that its folder keeps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.checks import require
from toolkit.data import Corpus, TaskMixture
from toolkit.files import write_atomically
from toolkit.models import DecoderConfig
from toolkit.parallel import ParallelConfig, is_main_process
from toolkit.training.branch import SAME, Branch
from toolkit.training.checkpoints.store import CheckpointStore
from toolkit.training.config import OF_NO_STEP, TrainingConfig
from toolkit.training.provenance import code_version
from toolkit.training.run_lock import RunLock
from toolkit.training.run_settings import RUN_FILE


def recorded_settings(
    model: DecoderConfig,
    training: TrainingConfig,
    parallel: ParallelConfig,
    corpus: Corpus,
    mixture: TaskMixture | None,
    initial: Mapping[str, Tensor] | None,
) -> dict[str, Any]:
    """What a run's folder says of it, without what only :func:`toolkit.training.fit` knows; plain values."""
    return {
        "model": model.to_dict(),
        "training": asdict(training),
        "parallel": asdict(parallel),
        "initial": None if initial is None else _digest(initial),
        "mixture": None if mixture is None else asdict(mixture) | {"task": repr(mixture.task)},
        "data": None if corpus.config is None else asdict(corpus.config),
        "corpus": corpus.digest,
        "code": code_version(),
        "torch": torch.__version__,
    }


def begin(
    store: CheckpointStore, lock: RunLock, training: TrainingConfig, settings: dict[str, Any], beginning: Path | None
) -> None:
    """Make the folder and write run.json, once it is sure that the run can begin from that checkpoint, if any.

    Where it is the folder's own, what the run learned from must be the same; where another run's, all but the decay.
    Every process checks, since one that found nothing wrong would wait for those that did; the main one writes.
    """
    folder, trunk, branch = store.folder, None, None
    if beginning in store.own:
        branch = _require_same_run(folder, settings).get("branch")
    elif beginning is not None:
        trunk = Branch.open(beginning)
        trunk.require_fits(training, settings)
        branch = {"trunk": trunk.trunk.name, "step": trunk.step}
    if is_main_process():
        lock.take()
        if trunk is not None:
            trunk.copy_history(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / RUN_FILE, json.dumps({**settings, "branch": branch}, indent=2) + "\n")


def _require_same_run(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json says of the run that ``folder`` has a checkpoint of, if it is one of these settings."""
    path = folder / RUN_FILE
    require(path.exists(), "folder", str(folder), f"one whose checkpoint has its settings beside it, in {path}")
    before: dict[str, Any] = json.loads(path.read_text())
    for name in (*SAME, "budget"):
        right = f"that of the run in {folder}, {before.get(name)!r}, or another folder"
        require(before.get(name) == settings[name], name, settings[name], right)
    for name, value in settings["training"].items():
        was = before["training"].get(name)
        right = f"{was!r}, as in the run in {folder} that goes on, or another folder"
        require(name in OF_NO_STEP or value == was, name, value, right)
    return before


def _digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 of names and values."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
