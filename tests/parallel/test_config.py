"""What a set of processes may be, how it shares a batch, and which process speaks for all."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from toolkit.parallel import ParallelConfig, is_main_process


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": 0}, "devices=0: it must be positive"),
        ({"num_nodes": -1}, "num_nodes=-1: it must be positive"),
        ({"accelerator": "tpu"}, "accelerator='tpu': it must be one of 'auto', 'cpu', 'gpu'"),
        ({"strategy": "fsdp"}, "strategy='fsdp': it must be one of 'auto', 'ddp'"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParallelConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"devices": 4, "num_nodes": 2, "data": 2, "shard": 3, "tensor": 2},
            "data 2 * shard 3 * tensor 2 = 12, but 8 processes were asked for (devices 4 * num_nodes 2): 6 does not "
            "divide 8, so no data fits; 2 node(s) with devices a multiple of 3 would do",
        ),
        (
            {"devices": 8, "data": 2, "shard": 2},
            "data 2 * shard 2 = 4, but 8 processes were asked for (devices 8 * num_nodes 1): data=None would be 4, "
            "devices=None 4",
        ),
        ({"devices": 2, "tensor": 4}, "tensor 4 = 4, but 2 processes were asked for"),
        ({"data": 3, "num_nodes": 2}, "num_nodes=2: it must be a divisor of data 3 = 3"),
        ({"data": 2, "shard": 3, "expert": 4}, "expert=4: it must be a divisor of data 2 * shard 3 * context 1 = 6"),
        ({"expert": 3, "shard": 2}, "= 2, which lend it their processes; data=3 would do"),
        ({"shard": 0}, "shard=0: it must be positive"),
        ({"zero": 1}, "zero=1: it must be one of 2, 3"),
        ({"context_method": "star"}, "context_method='star': it must be one of 'ring', 'ulysses'"),
        ({"gather_dtype": "fp8"}, "gather_dtype='fp8': it must be one of 'parameter', 'bf16'"),
        (
            {"data": 8, "offload": True},
            "offload=True: it must be False where parameters are not gathered, as with shard",
        ),
        ({"tensor": 2, "offload": True}, "offload=True: it must be False where parameters are not gathered"),
        ({"gather_dtype": "bf16"}, "gather_dtype='bf16': it must be 'parameter' where parameters are not gathered"),
        ({"pipeline": 2, "data": 2, "gather_dtype": "bf16"}, "gather_dtype='bf16': it must be 'parameter' where"),
        ({"strategy": "ddp", "shard": 2}, "strategy='ddp': it must be 'auto' where another size than data is above 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_arithmetic(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ParallelConfig(**settings)


def test_what_is_left_out_is_filled_in_so_that_the_sizes_are_the_processes() -> None:
    sizes = range(1, 4)
    for nodes, devices, shard, tensor, pipeline in product(sizes, (None, 1, 2, 4, 6), sizes, sizes, (1, 2)):
        others = shard * tensor * pipeline
        settings = {"num_nodes": nodes, "devices": devices, "shard": shard, "tensor": tensor, "pipeline": pipeline}
        if devices is not None and devices * nodes % others:
            with pytest.raises(ValueError, match="processes were asked for"):
                ParallelConfig(**settings)  # type: ignore[arg-type]
            continue
        parallel = ParallelConfig(**settings)  # type: ignore[arg-type]
        assert parallel.world_size == parallel.data_size * others == parallel.processes_per_node * nodes
        if devices is None:  # as few as there can be
            assert not any(count * others % nodes == 0 for count in range(1, parallel.data_size))
        assert replace(parallel, accelerator="cpu").shape == parallel.shape


@pytest.mark.parametrize("sizes", [{"shard": 2}, {"context": 2}, {"data": 2, "tensor": 2}, {"data": 2, "expert": 2}])
def test_what_fsdp2_does_is_asked_for_where_it_runs(sizes: dict[str, int]) -> None:
    assert ParallelConfig(**sizes, gather_dtype="bf16", offload=True).gathers  # type: ignore[arg-type]


def test_processes_of_one_model_copy_take_one_share_of_the_batch() -> None:
    parallel = ParallelConfig(devices=24, shard=3, tensor=2, pipeline=2)
    assert (parallel.data_size, parallel.batch_count, parallel.local_batch(12)) == (2, 6, 2)


@pytest.mark.parametrize(("devices", "num_nodes"), [(1, 1), (2, 1), (1, 3), (4, 2)])
def test_the_processes_shares_make_up_the_batch(devices: int, num_nodes: int) -> None:
    parallel = ParallelConfig(devices=devices, num_nodes=num_nodes)
    assert parallel.world_size == devices * num_nodes
    assert parallel.local_batch(48) * parallel.world_size == 48


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    right = r"batch_size=10: it must be a multiple of data \* shard = 4 \* 1 = 4"
    with pytest.raises(ValueError, match=right):
        ParallelConfig(devices=2, num_nodes=2).local_batch(10)


@pytest.mark.parametrize(
    ("strategy", "devices", "expected"), [("auto", 1, "auto"), ("ddp", 1, "ddp"), ("auto", 2, "ddp"), ("ddp", 2, "ddp")]
)
def test_several_processes_are_always_ddp(strategy: str, devices: int, expected: str) -> None:
    assert ParallelConfig(devices=devices, strategy=strategy).lightning_strategy == expected


@pytest.mark.parametrize(
    ("environment", "main"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0"}, True),  # Lightning's launcher sets it for the processes it starts
        ({"LOCAL_RANK": "1"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),  # torchrun
        ({"RANK": "4", "LOCAL_RANK": "0"}, False),  # the first process of the second node
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "8"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),  # Lightning's children inside an allocation
        ({"NODE_RANK": "1"}, False),  # the second node, before Lightning starts its children
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"GROUP_RANK": "0", "LOCAL_RANK": "0"}, True),
    ],
)
def test_rank_0_is_the_main_process(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], main: bool) -> None:
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() == main


@pytest.mark.parametrize(
    ("accelerator", "gpus", "expected"), [("auto", 0, "cpu"), ("auto", 2, "gpu"), ("cpu", 2, "cpu"), ("gpu", 2, "gpu")]
)
def test_the_device_is_a_cuda_gpu_or_the_cpu(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, gpus: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert ParallelConfig(devices=2, accelerator=accelerator).device == expected


@pytest.mark.parametrize(("accelerator", "gpus"), [("gpu", 0), ("gpu", 1), ("auto", 1)])
def test_more_gpus_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch, accelerator: str, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ValueError, match=f"devices=2: it must be at most {gpus}"):
        _ = ParallelConfig(devices=2, accelerator=accelerator).device


def test_a_launcher_must_have_started_as_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    ParallelConfig(devices=2).check_launch()
    with pytest.raises(ValueError, match=r"devices=1: it must be such that devices \* num_nodes = 2"):
        ParallelConfig().check_launch()
    monkeypatch.delenv("WORLD_SIZE")
    ParallelConfig().check_launch()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"micro_batches": 4}, "micro_batches=4: it must be 1 with pipeline=1"),
        ({"schedule": "gpipe"}, "schedule='gpipe': it must be '1f1b' with pipeline=1"),
        (
            {"schedule": "interleaved", "stages_per_process": 2},
            "schedule='interleaved': it must be '1f1b' with pipeline=1",
        ),
        (
            {"pipeline": 4, "micro_batches": 2},
            "micro_batches=2: it must be at least 4, the stages, with schedule='1f1b'",
        ),
        ({"pipeline": 2, "stages_per_process": 2}, "stages_per_process=2: it must be 1 with schedule='1f1b'"),
        ({"pipeline": 2, "schedule": "zero bubble"}, "schedule='zero bubble': it must be"),
    ],
)
def test_a_schedule_is_a_pipeline_s_and_runs_with_its_micro_batches(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ParallelConfig(**settings)


def test_a_pipeline_has_as_many_micro_batches_as_processes_and_cuts_each_process_s_batch() -> None:
    assert ParallelConfig().micro_batches == 1
    parallel = ParallelConfig(pipeline=4, data=2)
    assert parallel.micro_batch_count == 4
    assert parallel.local_batch(16) == 8
    right = "batch_size=12: it must be a multiple of data * shard * micro_batches = 2 * 1 * 4 = 8"
    with pytest.raises(ValueError, match=re.escape(right)):
        parallel.local_batch(12)
