"""The CPU path is the textbook, in value and gradient, over any passes; linear in memory; the same bits each time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from attention_cases import draw
from blockwise_cases import banded, pass_of, reordered, textbook
from hypothesis import given, settings
from pattern_cases import BATCH, CASES, HEADS, PLACES, Case, Place
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from toolkit.attention import Causal, SlidingWindow
from toolkit.attention.blockwise import backward, forward, shares
from toolkit.attention.plan import Pass, plan
from toolkit.attention.reference import reference_attention
from toolkit.attention.scoring import Scoring

FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 1.5},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.25, 0.1, 0.05])},
    "sink": {"sink_logits": torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)},
    "dropout": {"dropout_p": 0.3, "seed": torch.tensor([1234567890123])},
}
FEATURES["all"] = {name: value for feature in FEATURES.values() for name, value in feature.items()}
GROUPS = [(4, 4), (4, 2), (4, 1)]


def ours(
    tensors: Sequence[Tensor], passes: Sequence[Pass], scoring: Scoring, grads: Any, q_start: int = 0, kv_start: int = 0
) -> list[Tensor]:
    q, k, v = (x.detach() for x in tensors)
    out, lse = forward(q, k, v, passes, scoring, q_start, kv_start)
    *gradients, d_sink = backward(*grads, q, k, v, out, lse, passes, scoring, q_start, kv_start)
    return [out, lse, *gradients] if d_sink is None else [out, lse, *gradients, d_sink]


def gradients_like(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    d_lse = torch.randn(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    return torch.randn(*q.shape[:3], v.shape[3], dtype=torch.float64).to(q.dtype), d_lse


def assert_close(mine: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-11) -> None:
    for x, y in zip(mine, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def split(mask: Tensor) -> list[Pass]:
    """Three passes that share no pair: the tokens as they come, then two shuffled orders of a few."""
    second, covered = reordered(mask, 30, 90)
    third, covered_too = reordered(mask & ~covered, mask.shape[2], 20)
    return [pass_of(mask & ~covered & ~covered_too), second, third]


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize(("heads", "kv_heads"), GROUPS)
def test_value_and_gradients_are_the_textbooks_over_any_passes(feature: str, heads: int, kv_heads: int) -> None:
    scoring = Scoring(0.4, **FEATURES[feature])
    for q_len, kv_len, lead in [(150, 150, (1, 1)), (67, 201, (2, 1)), (131, 140, (1, 4)), (40, 41, (2, 4))]:
        tensors = draw(q_len, kv_len, heads, kv_heads, value_dim=12)
        mask = banded(q_len, kv_len, 70, lead)
        grads, start = gradients_like(tensors[0], tensors[2]), (kv_len - q_len + 7, 7)
        expected = textbook(tensors, mask, scoring, grads, *start)
        assert_close(ours(tensors, [pass_of(mask)], scoring, grads, *start), expected)
        if lead == (1, 1):
            assert_close(ours(tensors, split(mask), scoring, grads, *start), expected)


def test_passes_for_some_heads_only() -> None:
    tensors = draw(90, 90, heads=6, kv_heads=2)
    mask = banded(90, 90, 30, (1, 6))
    mask[:, [0, 1, 5]] = mask[:, :1].clone()
    order, covered = reordered(mask[:, :1], 50, 60)
    order = Pass(order.rows, order.columns, order.first, order.stop, order.n_columns, (0, 1, 5))
    passes = [
        pass_of(mask[:, :1] & ~covered, heads=(0, 1, 5)),
        pass_of(mask[:, 2:4], heads=(2, 3)),
        order,
        pass_of(mask[:, 4:5], heads=(4,)),
    ]
    grads = gradients_like(tensors[0], tensors[2])
    scoring = Scoring(0.4, softcap=2.0, dropout_p=0.2, seed=torch.tensor([5]), alibi_slopes=torch.rand(6))
    assert_close(ours(tensors, passes, scoring, grads), textbook(tensors, mask, scoring, grads, 0, 0))


@settings(max_examples=40)
@given(CASES, PLACES)
def test_every_pattern_as_it_is_planned(case: Case, place: Place) -> None:
    place.fits(case.pattern)
    tensors = draw(place.q_len, place.kv_len, HEADS, HEADS, batch=BATCH, head_dim=4)
    passes = plan(case.pattern, *place.args)
    scoring, grads = Scoring(0.5), gradients_like(tensors[0], tensors[2])
    mine = ours(tensors, passes, scoring, grads, place.first, place.kv_start)
    out, lse = reference_attention(*tensors, case.pattern, scoring, place.first, place.kv_start)
    assert_close(mine, [out, lse, *torch.autograd.grad((out, lse), tensors, grads)])


@pytest.mark.parametrize(
    ("scores", "operands", "kv_heads"), [(2**20, 1, 4), (2**20, 2, 2), (1, 2, 4), (2**20, 32, 2), (1, 8, 1)]
)
def test_the_cut_does_not_matter(scores: int, operands: int, kv_heads: int) -> None:
    tensors = draw(130, 1130, 4, kv_heads, head_dim=4)
    mask = banded(130, 1130, 1100)
    mask[..., 100:120, 600:] = False  # rows that see nothing in the second chunk of their block
    scoring, grads = Scoring(0.4, **FEATURES["all"]), gradients_like(tensors[0], tensors[2])
    expected = textbook(tensors, mask, scoring, grads, 1000, 0)
    with mock.patch.object(shares, "SCORES", scores), mock.patch.object(shares, "OPERANDS", operands):
        assert_close(ours(tensors, [pass_of(mask)], scoring, grads, 1000), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("feature", FEATURES)
def test_error_is_at_most_twice_the_textbooks(feature: str, dtype: torch.dtype) -> None:
    mask = banded(160, 200, 90)
    tensors = tuple(x.detach() for x in draw(160, 200, dtype=dtype, head_dim=16))
    grads = gradients_like(tensors[0], tensors[2])
    scoring = Scoring(0.25, **FEATURES[feature])
    exact = textbook(tuple(x.double() for x in tensors), mask, scoring, [x.double() for x in grads], 40, 0)
    same = textbook(tensors, mask, scoring, grads, 40, 0)
    passes = split(mask)
    for mine, theirs, right in zip(ours(tensors, passes, scoring, grads, 40), same, exact, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine == -torch.inf, right == -torch.inf)
        empty = right == -torch.inf
        largest = right.masked_fill(empty, 0.0).abs().max()
        # d_sink may be wider than out, whose rounding it inherits.
        ulp = torch.finfo(dtype if mine.dtype == torch.float64 else mine.dtype).eps * 2 ** largest.log2().floor()
        error, textbooks = ((x.double() - right).masked_fill(empty, 0.0).abs().max() for x in (mine, theirs))
        assert error <= 2 * textbooks + 4 * ulp


@pytest.mark.parametrize("sink", [False, True])
def test_rows_that_see_nothing(sink: bool) -> None:
    q, k, v = (x.detach() for x in draw(150, 150))
    mask = banded(150, 150, 40)
    mask[:, :, 20:90] = False
    scoring = Scoring(0.4, **(FEATURES["sink"] if sink else {}))
    grads = gradients_like(q, v)
    out, lse, *gradients = ours((q, k, v), [pass_of(mask)], scoring, grads)
    empty = ~mask.any(-1)[0, 0]
    assert empty.sum() == 71
    assert (out[:, :, empty] == 0).all()
    logits = scoring.sink_logits.detach()[:, None] if scoring.sink_logits is not None else torch.tensor(-torch.inf)
    torch.testing.assert_close(lse[:, :, empty], logits.expand(2, 4, 71).double(), rtol=1e-14, atol=0)
    assert (gradients[0][:, :, empty] == 0).all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_pattern_that_sees_nothing_at_all() -> None:
    tensors = draw(9, 9)
    grads = gradients_like(tensors[0], tensors[2])
    out, lse, *gradients = ours(tensors, [pass_of(torch.zeros(1, 1, 9, 9, dtype=torch.bool))], Scoring(1.0), grads)
    assert (lse == -torch.inf).all()
    assert all((x == 0).all() for x in (out, *gradients))


@pytest.mark.parametrize("gathered", [False, True])
def test_poison_in_what_nobody_sees_does_not_leak(gathered: bool) -> None:
    tensors = [x.detach() for x in draw(200, 200)]
    mask = banded(200, 200, 50)
    padding = torch.rand(200) < 0.3  # scattered: they share tiles with keys that are seen
    mask[:, :, padding], mask[..., padding] = False, False
    passes = split(mask) if gathered else [pass_of(mask)]
    blind = ~mask.any(-1)[0, 0]
    scoring, grads = Scoring(0.4, **FEATURES["all"]), gradients_like(tensors[0], tensors[2])
    clean = ours(tensors, passes, scoring, grads)
    for x, rows in zip(tensors, (blind, padding, padding), strict=True):
        x[:, :, rows] = torch.nan
    assert all(torch.equal(x, y) for x, y in zip(clean, ours(tensors, passes, scoring, grads), strict=True))
    assert clean[0].isfinite().all()


def test_a_rerun_gives_the_same_bits() -> None:
    tensors = draw(300, 300, dtype=torch.float32)
    scoring, grads = Scoring(0.4, **FEATURES["all"]), gradients_like(tensors[0], tensors[2])
    mask = banded(300, 300, 120)
    passes = split(mask)
    first, second = (ours(tensors, passes, scoring, grads) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_views_are_read_right_and_nothing_is_written_to() -> None:
    dense = torch.randn(2, 140, 3 * 4 * 8, dtype=torch.float64)
    tensors = dense.view(2, 140, 12, 8).transpose(1, 2).split(4, dim=1)
    assert not tensors[0].is_contiguous()
    before = dense.clone()
    mask = banded(140, 140, 90)
    d_out, d_lse = gradients_like(tensors[0], tensors[2])
    everywhere = torch.ones((), dtype=torch.float64).expand(2, 4, 140, 8)  # what out.sum() sends back
    for grads in ((d_out.transpose(1, 2).contiguous().transpose(1, 2), d_lse), (everywhere, d_lse)):
        for passes in ([pass_of(mask)], split(mask)):
            expected = textbook(tensors, mask, Scoring(0.5), grads, 0, 0)
            assert_close(ours(tensors, passes, Scoring(0.5), grads), expected)
    assert torch.equal(dense, before)


def test_autocast_does_not_lower_it() -> None:
    tensors = draw(140, 140, dtype=torch.float32)
    grads, passes = gradients_like(tensors[0], tensors[2]), plan(Causal(), 140, 140)
    plain = ours(tensors, passes, Scoring(0.35), grads)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = ours(tensors, passes, Scoring(0.35), grads)
    assert all(torch.equal(x, y) for x, y in zip(plain, cast, strict=True))


def test_large_scores_neither_overflow_nor_lose_the_softmax() -> None:
    q, k, v = (x.detach() for x in draw(70, 70, dtype=torch.float32))
    passes, scoring = plan(Causal(), 70, 70), Scoring(1.0)
    q[:, :, 1::2] *= 1e3
    out, lse = forward(q, k, v, passes, scoring, 0, 0)
    exact, exact_lse = reference_attention(q.double(), k.double(), v.double(), Causal(), scoring)
    ulps = 4 * torch.finfo(torch.float32).eps * exact_lse.abs().max().item()
    torch.testing.assert_close(lse.double(), exact_lse, rtol=0, atol=ulps)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=2e-3)


@pytest.mark.parametrize("window", [64, 700])
def test_no_tensor_is_quadratic_in_the_sequence(window: int) -> None:
    n = 4_096

    class LargestTensor(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, Tensor):
                    self.numel = max(self.numel, tensor.numel())
            return out

    tensors = tuple(x.detach() for x in draw(n, n, heads=2, kv_heads=2, batch=1, dtype=torch.float32))
    grads = gradients_like(tensors[0], tensors[2])
    passes = plan(Causal() & SlidingWindow(window), n, n)
    with LargestTensor() as largest:
        ours(tensors, passes, Scoring(0.5), grads)
    assert 0 < largest.numel <= max(tensors[0].numel(), 2 * shares.SCORES)
