"""Each token is scored once, with the context that the definition gives it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from toolkit.data.evaluation import NLL, sliding_perplexity

VOCAB = 7
WEIGHTS = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ROWS = st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=30)


def logits_of(input_ids: Tensor) -> Tensor:
    """A causal model that every token of its context moves, the oldest too: a running sum."""
    return WEIGHTS[input_ids].cumsum(dim=1) / 3


def nll_of(context: Tensor, target: int) -> float:
    """The NLL of one token given one context, by itself."""
    return -float(logits_of(context[None])[0, -1].log_softmax(dim=-1)[target])


@given(ROWS, st.integers(1, 12), st.data(), st.integers(1, 4))
def test_it_is_the_sum_over_tokens_of_their_defined_contexts(
    row: list[int], window: int, data: st.DataObject, batch_size: int
) -> None:
    stride = data.draw(st.integers(1, window))
    tokens, expected = torch.tensor(row), 0.0
    for target in range(1, len(row)):
        # The end of the first window that reaches the target: window, window + stride, ..., the last token.
        end = min(window + max(0, -(-(target - window) // stride)) * stride, len(row) - 1)
        expected += nll_of(tokens[max(0, end - window) : target], row[target])
    found = sliding_perplexity(logits_of, tokens, window, stride, batch_size)
    assert found.tokens == len(row) - 1
    assert found.nll_sum == pytest.approx(expected, rel=1e-9)


@given(ROWS, st.integers(1, 12))
def test_stride_one_scores_every_token_with_a_full_window(row: list[int], window: int) -> None:
    tokens = torch.tensor(row)
    each = [nll_of(tokens[max(0, target - window) : target], row[target]) for target in range(1, len(row))]
    assert sliding_perplexity(logits_of, tokens, window, 1).nll_sum == pytest.approx(sum(each), rel=1e-9)


@given(ROWS, st.integers(0, 5), st.data())
def test_a_window_over_everything_is_the_plain_nll(row: list[int], more: int, data: st.DataObject) -> None:
    tokens, window = torch.tensor(row), len(row) - 1 + more
    stride = data.draw(st.integers(1, window))
    logs = logits_of(tokens[None, :-1])[0].log_softmax(dim=-1)
    plain = -float(logs.gather(1, tokens[1:, None]).sum())
    assert sliding_perplexity(logits_of, tokens, window, stride).nll_sum == pytest.approx(plain, rel=1e-9)


def test_no_token_weighs_more_for_standing_in_a_short_window() -> None:
    """A model of uniform guesses but for the last token: a mean of windows' means would count it tenfold."""

    def last_is_hard(input_ids: Tensor) -> Tensor:
        logits = torch.zeros(*input_ids.shape, 4, dtype=torch.float64)
        return logits.masked_fill((input_ids == 3)[..., None] & (torch.arange(4) == 0), -20.0)

    tokens = torch.tensor([1] * 20 + [3, 0])  # 21 targets; windows of 10 leave one for the last
    found = sliding_perplexity(last_is_hard, tokens, window=10, stride=10)
    hard = 20 + math.log(3 + math.exp(-20))
    assert found.mean == pytest.approx((20 * math.log(4) + hard) / 21)
    assert found.perplexity == pytest.approx(math.exp(found.mean))


def test_sums_add_and_bits_follow() -> None:
    both = NLL(2.0, 3) + NLL(4.0, 1)
    assert (both.nll_sum, both.tokens, both.mean) == (6.0, 4, 1.5)
    assert both.bits_per_byte(12) == pytest.approx(0.5 / math.log(2))
    with pytest.raises(ValueError, match="length=0"):
        both.bits_per_byte(0)


def test_bf16_logits_are_scored_in_fp32() -> None:
    tokens = torch.arange(6)
    low = sliding_perplexity(lambda ids: logits_of(ids).bfloat16(), tokens, 5, 5).nll_sum
    exact = sliding_perplexity(lambda ids: logits_of(ids).bfloat16().double(), tokens, 5, 5).nll_sum
    assert low == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"window": 0}, "window=0"),
        ({"stride": 0}, "stride=0"),
        ({"stride": 5}, "stride=5.*window=4"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"tokens": torch.tensor([1])}, "tokens=.*at least 2"),
        ({"tokens": torch.zeros(2, 2, dtype=torch.int64)}, "tokens="),
    ],
)
def test_a_bad_setting_is_refused_by_name(settings: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        sliding_perplexity(logits_of, **{"tokens": torch.arange(6), "window": 4, "stride": 2, **settings})  # type: ignore[arg-type]
