"""A pipeline's losses, gradients, weights and routing are those of one process with the same micro-batches."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
import torch
from gloo import run_processes
from pipeline_work import (
    DIM,
    KINDS,
    LENGTH,
    VOCAB_SIZE,
    accumulated,
    decoder,
    documents,
    evaluated,
    kept_logits,
    packed,
    raised,
    refusals,
    reported,
    sent_bytes,
    several,
    train_all,
    windows,
)

from toolkit.layers import auxiliary_losses
from toolkit.models import Decoder
from toolkit.parallel import ParallelConfig
from toolkit.parallel.pipeline import PipelineLosses, token_loss
from toolkit.parallel.pipeline.trainer import require_alone
from toolkit.routing import LoadBalancingLoss
from toolkit.training.equivalence import Steps
from toolkit.training.pipelined_steps import train_pipelined

INTERLEAVED = {"schedule": "interleaved", "stages_per_process": 2}
TWO, FOUR, COPIES = ParallelConfig(pipeline=2), ParallelConfig(pipeline=4), ParallelConfig(pipeline=2, data=2)

Case = tuple[str, dict[str, Any], ParallelConfig, dict[str, Any]]


@cache
def alone(kind: str, micro_batches: int, **changes: Any) -> Steps:
    model = decoder(kind, **changes)
    return train_pipelined(model, ParallelConfig(), length=LENGTH, micro_batches=micro_batches)


def assert_same(cases: Iterable[Case]) -> None:
    cases = list(cases)
    given = [(decoder(kind, **changes), parallel, settings) for kind, changes, parallel, settings in cases]
    for results in run_processes(cases[0][2].world_size, train_all, given):
        for (kind, changes, parallel, settings), found in zip(cases, results, strict=True):
            errors = found.worst_errors(alone(kind, settings.get("micro_batches", 4), **changes))
            assert max(errors.values()) < 1e-10, (kind, changes, parallel, settings, errors)


def test_two_processes_are_one() -> None:
    assert_same(
        [
            ("moe", {}, TWO, {}),
            ("moe", {"tied_head": False}, TWO, INTERLEAVED),
            ("dense", {"mup_base_dim": 8}, TWO, {"micro_batches": 8}),
        ]
    )


@pytest.mark.slow
def test_two_processes_are_one_however_layers_are_made() -> None:
    plain: list[Case] = [(kind, {"tied_head": tied}, TWO, {}) for kind in KINDS for tied in (True, False)]
    ways: list[Case] = [
        ("moe", {}, TWO, {"schedule": "gpipe", "micro_batches": 1}),
        ("sequence", {}, TWO, {"recompute": "full"}),
        ("dense", {}, TWO, {"recompute": "selective"}),
    ]
    assert_same(plain + ways)


@pytest.mark.slow
def test_four_processes_are_one() -> None:
    plain: list[Case] = [(kind, {"tied_head": tied}, FOUR, {}) for kind in KINDS for tied in (True, False)]
    copies: list[Case] = [
        (kind, {"tied_head": tied}, COPIES, {}) for kind in ("dense", "moe") for tied in (True, False)
    ]
    assert_same(
        [
            *plain,
            *copies,
            ("moe", {}, FOUR, {"schedule": "gpipe", "micro_batches": 2}),
            ("moe", {}, COPIES, INTERLEAVED),
        ]
    )


def test_the_comparison_sees_what_is_tested() -> None:
    """Losses are of a micro-batch, clipping is active, biases move."""
    four = alone("moe", 4)
    assert (four.norms > 0.1).all()
    assert any(name.endswith("balancer.bias") and abs(bias).max() > 0 for name, bias in four.weights.items())
    assert four.worst_errors(alone("moe", 2))["gradients"] > 1e-6
    assert alone("dense", 4).worst_errors(alone("dense", 2))["gradients"] < 1e-10


def test_what_a_step_reports_is_of_all_stages_and_micro_batches() -> None:
    torch.manual_seed(0)
    model = Decoder(decoder("moe")).double()
    for loss in (module for module in model.modules() if isinstance(module, LoadBalancingLoss)):
        loss.micro_batches = 4
    task, auxiliary, counts = 0.0, {"balance": 0.0, "z": 0.0}, {}
    for ids, labels in zip(*(table.chunk(4) for table in windows(8)), strict=True):
        task += token_loss(model(ids).logits, labels).item() / 4
        for name, value in auxiliary_losses(model).items():
            auxiliary[name] += value.item() / 4
        for layer in (0, 1, 3):
            path = f"blocks.{layer}.feed_forward"
            counts[path] = counts.get(path, 0) + model.get_submodule(path).stats.counts
    names = []
    for here, others, stats, held in (found[0] for found in in_two()):
        assert here == pytest.approx(task, rel=1e-12)
        assert others == pytest.approx(auxiliary, rel=1e-12)
        assert stats == {path: each.tolist() for path, each in counts.items()}
        names.append(set(held))
    assert names[0] & names[1] == {"embedding.weight"}
    assert names[0] | names[1] == dict(model.named_parameters()).keys()


def test_total_is_the_sum() -> None:
    one = torch.tensor(1.0)
    assert PipelineLosses(one, {"balance": one / 2, "z": one / 4}).total.item() == 1.75


def test_gradients_add_up_over_steps_and_tied_copies_stay_the_same() -> None:
    for worst, alike, norm in (found[1] for found in in_two()):
        assert worst < 1e-12
        assert alike
        assert norm


def test_packed_documents_are_told_to_every_stage() -> None:
    torch.manual_seed(0)
    model = Decoder(decoder("moe")).double()
    for loss in (module for module in model.modules() if isinstance(module, LoadBalancingLoss)):
        loss.micro_batches = 4
    for ids, labels, numbers in zip(*(table.chunk(4) for table in (*windows(8), documents())), strict=True):
        loss = token_loss(model(ids, sequence_ids=numbers).logits, labels) + sum(auxiliary_losses(model).values())
        (loss / 4).backward()
    for gradients in (found[2] for found in in_two()):
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(torch.from_numpy(gradients[name]), parameter.grad, rtol=1e-10, atol=1e-12)


SENT = [(True, "1f1b", 1), (False, "gpipe", 1), (False, "interleaved", 2)]


@cache
def in_two() -> list[list[Any]]:
    """By rank, what the functions of the following tests gave, each in the same two processes."""
    tried = [(reported, ()), (accumulated, ()), (packed, ()), (refusals, ()), (evaluated, ())]
    tried += [(sent_bytes, arguments) for arguments in SENT]
    return run_processes(2, several, [*tried, (kept_logits, ()), (raised, ())])


@pytest.mark.parametrize("case", range(len(SENT)))
def test_bytes_sent_are_those_of_the_activations_and_their_gradients(case: int) -> None:
    """micro_batches * (2, LENGTH, DIM) numbers of 8 bytes over each of the stages' borders, one way and the other."""
    tied, _, per_process = SENT[case]
    crossing = 4 * 2 * LENGTH * DIM * 8
    borders = 2 * per_process - 1
    first, last = (found[5 + case] for found in in_two())
    assert first["send"] + last["send"] == 2 * borders * crossing
    assert first["send"] == last["send"]  # as many borders are crossed forward from one as backward from the other
    losses = 1 * 8  # the task's, summed over the stages in fp64
    assert first["all_reduce"] == losses + (VOCAB_SIZE * DIM * 8 if tied else 0)


def test_evaluation_is_without_gradients_and_training_goes_on_after_it() -> None:
    torch.manual_seed(0)
    model = Decoder(decoder("moe")).double().eval()
    input_ids, labels = windows(8)
    expected = token_loss(model(input_ids).logits, labels).item()
    model(windows(1)[0])
    loads = {f"blocks.{layer}.feed_forward": model.blocks[layer].feed_forward.stats.load for layer in (0, 1, 3)}  # type: ignore[union-attr]
    for rank, (loss, chosen, after) in enumerate(found[4] for found in in_two()):
        assert loss == pytest.approx(expected, rel=1e-12)
        assert chosen == {path: load.tolist() for path, load in loads.items()}
        task, auxiliary, *_ = in_two()[rank][0]
        assert after == pytest.approx(task + sum(auxiliary.values()), rel=1e-12)


def test_an_evaluation_keeps_one_micro_batch_s_logits_and_none_after_it() -> None:
    first, last = (found[-2] for found in in_two())
    assert first == ([], 0)
    assert last == ([1, 1, 1, 1], 0)


def test_a_layer_s_error_comes_out_of_the_engine_as_it_was_raised() -> None:
    first, last = (found[-1] for found in in_two())
    assert first == "nothing"
    assert last == 'MemoryError("the layer\'s own words")'


def test_refusals_do_the_arithmetic() -> None:
    said = [
        "micro_batches=4: it must be a divisor of the batch of 6; a batch of 4 or 8 would do",
        "labels.shape=(6, 7): it must be (6, 8)",
        "stages=6: it must be at most 4, the layers: each stage holds one or more",
        "micro_batches=1: it must be at least 2, the stages, with schedule='1f1b'; 'gpipe' takes fewer",
        "micro_batches=5: it must be a multiple of its 2 rounds (5 // 2 processes) with schedule='interleaved'",
        "stages_per_process=2: it must be 1 with schedule='1f1b'",
        "schedule='zero bubble': it must be",
        "over='global': it must be 'batch' or 'sequence' in layers that are computed again, in a pipeline",
        "pipeline=1: it must be 2 or more",
    ]
    for found in (each[3] for each in in_two()):
        for message, expected in zip(found, said, strict=True):
            assert expected in message


@pytest.mark.parametrize("size", ["shard", "context", "tensor"])
def test_what_does_not_stand_beside_a_pipeline_is_refused(size: str) -> None:
    require_alone(ParallelConfig(pipeline=2, data=2))
    with pytest.raises(ValueError, match=f"{size}=2: it must be 1 with a pipeline"):
        require_alone(ParallelConfig(pipeline=2, **{size: 2}))
