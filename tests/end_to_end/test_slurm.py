"""The batch script, with stand-ins for srun and scontrol: it hands SIGTERM on, and requeues what exits with 75."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from end_to_end_cases import ROOT

from toolkit.training.termination import START_AGAIN

SCRIPT = ROOT / "experiments" / "slurm" / "train.sbatch"


def job(folder: Path, srun: str, send: signal.Signals | None) -> tuple[int, str, str]:
    """Exit code, what scontrol was called with, and how srun was."""
    for name, body in {
        "srun": f'echo "$@" > {folder}/started\n{srun}',
        "scontrol": f'echo "$@" > {folder}/asked',
    }.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "17", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_NUM_NODES": "1"}
    environment = {**os.environ, **slurm, "PATH": f"{folder}:{os.environ['PATH']}"}
    process = subprocess.Popen(["bash", str(SCRIPT), "one.yaml", "--out", "runs/x"], env=environment)
    if send is not None:
        end = time.monotonic() + 20
        while not (folder / "started").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(send)
    code = process.wait(20)
    asked = folder / "asked"
    return code, asked.read_text().strip() if asked.exists() else "", (folder / "started").read_text().strip()


SAVES = f"trap 'sleep 0.5; exit {START_AGAIN}' TERM\nwhile true; do sleep 0.05; done"


def test_on_sigterm_it_waits_for_the_run_to_save_and_requeues_itself(tmp_path: Path) -> None:
    code, asked, started = job(tmp_path, SAVES, signal.SIGTERM)
    assert (code, asked) == (START_AGAIN, "requeue 17")
    train = "python experiments/train.py one.yaml --out runs/x --parallel.devices 8 --parallel.num_nodes 1"
    assert started.endswith(train)


@pytest.mark.parametrize("code", [0, 1, 143])
def test_a_run_that_is_done_or_failed_is_not_requeued(tmp_path: Path, code: int) -> None:
    assert job(tmp_path, f"exit {code}", None)[:2] == (code, "")


def test_a_run_that_saved_unasked_by_this_shell_is_requeued_too(tmp_path: Path) -> None:
    assert job(tmp_path, f"exit {START_AGAIN}", None)[:2] == (START_AGAIN, "requeue 17")
