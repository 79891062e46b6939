"""A machine's line names its processor and the cores that this process may use."""

from __future__ import annotations

import os

import pytest

from toolkit.scaling import machine


def test_cores_are_those_that_this_process_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert machine.cores() == 3
    assert machine.describe().endswith(", 3 cores")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores() == 1


def test_a_processor_without_a_name_in_proc_has_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.Path, "exists", lambda _: False)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "riscv")
    assert machine.describe().startswith("riscv, ")
