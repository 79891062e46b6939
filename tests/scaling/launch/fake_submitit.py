"""Stands for submitit: its interface, jobs being processes of this machine, so that launching is tested without it.

Names and behaviour as submitit documents them: an executor that takes parameters by their names with the cluster's
before those that are not shared, jobs that are ``done``, and ``exception`` which tells failed from uncompleted ones.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SHARED = {"name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node"}
OF_SLURM = {
    *("partition", "account", "qos", "constraint", "gres", "gpus_per_task", "setup", "array_parallelism"),
    *("additional_parameters", "signal_delay_s", "exclude", "comment"),
}


class UncompletedJobError(RuntimeError):
    """A job that left no word."""


class FailedJobError(UncompletedJobError):
    """A job that raised."""


class DelayedSubmission:
    """A call to be made later."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args


@contextlib.contextmanager
def clean_env() -> Iterator[None]:
    yield


def run_job(submitted: Path, result: Path) -> None:
    call = pickle.loads(submitted.read_bytes())
    try:
        found = ("success", call.function(*call.args))
    except Exception:
        found = ("error", traceback.format_exc())
    result.write_bytes(pickle.dumps(found))


class Job:
    """One process."""

    def __init__(self, job_id: str, folder: Path, call: DelayedSubmission) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.job_id, self.result_file = job_id, folder / f"{job_id}_result.pkl"
        submitted = folder / f"{job_id}_submitted.pkl"
        submitted.write_bytes(pickle.dumps(call))
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=run_job, args=(submitted, self.result_file))
        self.process.start()

    def done(self) -> bool:
        return not self.process.is_alive()

    def exception(self) -> UncompletedJobError | None:
        self.process.join()
        if not self.result_file.exists():
            return UncompletedJobError(f"Job {self.job_id} has not produced any output")
        outcome, found = pickle.loads(self.result_file.read_bytes())
        return FailedJobError(found) if outcome == "error" else None


class AutoExecutor:
    """Submits; ``jobs`` are all that any executor has submitted."""

    jobs: list[Job] = []  # noqa: RUF012  # shared on purpose
    last: AutoExecutor | None = None

    def __init__(self, folder: Path, cluster: str | None = None) -> None:
        self.folder, self.cluster, self.parameters = folder, cluster, {}
        AutoExecutor.last = self

    def update_parameters(self, **given: Any) -> None:
        unknown = {name for name in given if name not in SHARED and name.removeprefix("slurm_") not in OF_SLURM}
        if unknown:
            raise NameError(f"unknown parameters: {unknown}")
        self.parameters.update(given)

    def submit(self, function: Any, *args: Any) -> Job:
        job = Job(str(1000 + len(self.jobs)), self.folder, DelayedSubmission(function, *args))
        self.jobs.append(job)
        return job


def install(patch: pytest.MonkeyPatch) -> type[AutoExecutor]:
    """Have ``import submitit`` find this."""
    contents: dict[str, dict[str, Any]] = {
        "submitit": {"AutoExecutor": AutoExecutor},
        "submitit.helpers": {"DelayedSubmission": DelayedSubmission, "clean_env": clean_env},
        "submitit.core": {},
        "submitit.core.utils": {"UncompletedJobError": UncompletedJobError, "FailedJobError": FailedJobError},
    }
    for name, attributes in contents.items():
        module = ModuleType(name)
        vars(module).update(attributes, __path__=[])
        patch.setitem(sys.modules, name, module)
    patch.setattr(AutoExecutor, "jobs", [])
    return AutoExecutor
