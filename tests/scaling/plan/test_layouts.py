"""Layouts of a run over GPUs: each multiplies to them and fits, none is missing, and the command says so."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from itertools import product
from math import prod

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from toolkit.compute import cost, memory, traffic
from toolkit.data import as_examples
from toolkit.layers.recomputation import Recompute, recompute_layers
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.parallel import ParallelConfig, build_mesh, parallelize
from toolkit.parallel.pipeline import PipelineTrainer
from toolkit.scaling.plan import __main__ as command
from toolkit.scaling.plan.layouts import Layout, Run, find_decoder, fitting, layouts, optimal_tokens
from toolkit.training.parts import own_part

ATTENTION = AttentionConfig(heads=8, kv_heads=4)
DENSE = DecoderConfig(512, 64, (BlockConfig(ATTENTION, FeedForwardConfig(256)),) * 3)
SPARSE = DecoderConfig(512, 64, (BlockConfig(ATTENTION, MoEConfig(64, 6, 2)),) * 3)
RUN = Run(params=1e6, gpus=12, seq=96, batch=2, vocab=512)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize(("config", "experts"), [(DENSE, 0), (SPARSE, 6)], ids=["dense", "moe"])
def test_layouts_are_those_that_the_toolkit_runs(config: DecoderConfig, experts: int, recompute: Recompute) -> None:
    """Every size of the mesh is tried on processes that send nothing; odd ones among them, and more than divide."""
    for gpus, seq in ((8, 24), (6, 18)):
        run = replace(RUN, experts=experts, per_node=gpus, gpus=gpus, seq=seq, recompute=recompute)
        with unsent(gpus):
            able = {each for each in every_mesh(gpus) if runs(config, each, run)}
        found = [layout.parallel for layout in layouts(config, run)]
        assert len(found) == len(set(found))
        assert set(found) == able
        assert len(able) > 6


@contextmanager
def unsent(processes: int) -> Iterator[None]:
    """This process as the first of a group whose collectives do nothing."""
    dist.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def every_mesh(gpus: int) -> Iterator[ParallelConfig]:
    for sizes in product(range(1, gpus + 1), repeat=6):
        names = dict(zip(("data", "shard", "tensor", "context", "pipeline", "expert"), sizes, strict=True))
        if prod(sizes[:5]) != gpus:
            continue
        with suppress(ValueError):
            yield ParallelConfig(devices=gpus, **names)


def runs(config: DecoderConfig, parallel: ParallelConfig, run: Run) -> bool:
    """Whether what trains takes the decoder and the tokens."""
    decoder = Decoder(config)
    recompute_layers(decoder, run.recompute)
    windows = torch.zeros(run.batch, run.seq + 1, dtype=torch.int64)
    try:
        meshes = build_mesh(parallel)
        if parallel.pipeline > 1:
            PipelineTrainer(decoder, meshes, length=run.seq)
        else:
            parallelize(decoder, meshes)
        input_ids, _ = as_examples(own_part(windows, meshes))
        for looks_at in decoder.embedding._forward_pre_hooks.values() if parallel.tensor > 1 else ():
            looks_at(decoder.embedding, (input_ids,))
    except ValueError:
        return False
    return True


def test_a_tensor_group_stays_on_a_node() -> None:
    found = {layout.parallel.tensor for layout in layouts(DENSE, replace(RUN, gpus=4, per_node=2, seq=16))}
    assert found == {1, 2}


def test_layouts_that_fit_are_those_memory_says_and_in_the_order_that_is_stated() -> None:
    half = statistics.median(layout.memory.training for layout in layouts(SPARSE, replace(RUN, experts=6)))
    run = replace(RUN, experts=6, gpu_memory=half / 0.9e9)
    every = layouts(SPARSE, run)
    fit = fitting(every, run)
    assert 0 < len(fit) < len(every)
    for layout in every:
        planned = memory(SPARSE, run.batch * layout.parallel.pipeline, run.seq, run.precision, layout.parallel)
        assert layout.memory == planned
        assert (layout in fit) == (planned.training <= run.room)
        assert layout.parallel.world_size == 12
        sent = traffic(SPARSE, run.batch * layout.parallel.pipeline, run.seq, run.precision, layout.parallel)
        assert layout.traffic == sent
        assert layout.sent_per_token == sent.total / layout.tokens
    keys = [(each.sent_per_token, each.memory.training) for each in fit]
    assert keys == sorted(keys)


def test_layouts_are_compared_by_what_they_send_for_a_token() -> None:
    """Copies average gradients once a step, however many tokens it has; the more tokens, the fewer bytes for each."""
    run = replace(RUN, gpus=4)
    few, many = (next(iter(copies(layouts(DENSE, each)))) for each in (run, replace(run, batch=4)))
    assert many.traffic == few.traffic
    assert few.sent_per_token == 2 * many.sent_per_token
    assert few.tokens == 4 * run.batch * run.seq


def copies(found: list[Layout]) -> list[Layout]:
    """Of whole models alone."""
    return [each for each in found if each.parallel.is_replicated]


def test_layers_that_choose_keys_by_content_are_not_planned_in_a_ring() -> None:
    block = BlockConfig(replace(ATTENTION, pattern="MoBA(block=8, top_k=2)"), FeedForwardConfig(256))
    found = layouts(replace(DENSE, blocks=(block,)), replace(RUN, gpus=4))
    assert {layout.parallel.context for layout in found} == {1}
    assert {layout.parallel.tensor for layout in found} > {1}


@pytest.mark.parametrize(("params", "experts"), [(1.5e8, 0), (1.3e9, 0), (1.3e9, 16), (7e9, 64), (7e10, 0), (7e10, 16)])
def test_the_decoder_has_the_parameters_that_were_asked_for(params: float, experts: int) -> None:
    run = Run(params=params, experts=experts, top_k=2)
    config = find_decoder(run)
    price = cost(config, 1)
    assert price.total_parameters == pytest.approx(params, rel=0.1)
    assert config.dim % 512 == 0
    assert optimal_tokens(price) == 20 * price.total_active_parameters
    assert price.total_active_parameters == price.total_parameters or experts


def test_llama_3s_shape_is_found_for_its_size() -> None:
    """Grattafiori et al. 2024 (arXiv 2407.21783), table 3: 8B has 32 layers of width 4096, 32 heads, 14336 hidden."""
    config = find_decoder(Run(params=8.03e9, vocab=128256))
    attention, feed_forward = config.blocks[0].attention, config.blocks[0].feed_forward
    assert (config.dim, len(config.blocks)) == (4096, 32)
    assert (attention.heads, attention.kv_heads, feed_forward.hidden_dim) == (32, 8, 14336)


def test_the_command_prints_what_it_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--params", "1.3e9", "--experts", "8", "--top-k", "2", "--gpus", "4", "--seq", "2048", "--show", "3"])
    printed = capsys.readouterr().out
    columns = "GB sent", "B/token", "It sends in a step of"
    for words in ("FLOPs per token", "Compute-optimal", "layouts fit into 72.0 GB", "dominate", "optimizer", *columns):
        assert words in printed
    command.main(["--params", "7e9", "--gpus", "1"])
    assert "None fits" in capsys.readouterr().out


def test_every_option_says_what_it_is() -> None:
    told = {action.dest: action.help for action in command.build_parser()._actions}
    assert set(told) == {"help", "show", *(field.name for field in fields(Run))}
    for name, text in told.items():
        assert text is not None and len(text.split()) > 2, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--params", "0"], "params=0.0: it must be positive"),
        (["--params", "1000"], "params=1000.0: it must be such that a model is within 10% of it; the smallest has"),
        (["--params", "7e9", "--gpus", "0"], "gpus=0: it must be positive"),
        (["--params", "7e9", "--experts", "4", "--top-k", "8"], "top_k=8: it must be at most num_experts=4"),
        (["--params", "7e9", "--recompute", "some"], "recompute='some': it must be 'none', 'full'"),
        (["--params", "7e9", "--recompute", "-2"], "recompute=-2: it must be"),
        (["--params", "7e9", "--precision", "fp8"], "precision='fp8': it must be one of"),
        (["--params", "7e9", "--usable", "1.5"], "usable=1.5: it must be above 0"),
        (["--params", "7e9", "--zero", "1"], "zero=1: it must be one of 2, 3"),
        (["--params", "many"], "argument --params: invalid float value: 'many'"),
        (["--gpus", "4"], "the following arguments are required: --params"),
        (["--params", "7e9", "--gpu", "4"], "unrecognized arguments: --gpu 4"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match="^[^\n]*$") as caught:
        command.main(arguments)
    assert message in str(caught.value)
