"""Loss by position against a loop over positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toolkit.data.evaluation import loss_by_position, sliding_perplexity

VOCAB = 6
WEIGHTS = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WINDOWS = torch.randint(VOCAB, (5, 13), generator=torch.Generator().manual_seed(1))


def logits_of(input_ids: Tensor) -> Tensor:
    return WEIGHTS[input_ids].cumsum(dim=1) / 2


@pytest.mark.parametrize("batch_size", [1, 2, 5, 9])
def test_a_bucket_is_the_sum_over_its_positions(batch_size: int) -> None:
    buckets = loss_by_position(logits_of, WINDOWS, (0, 1, 5, 12), batch_size)
    assert [(bucket.low, bucket.high) for bucket in buckets] == [(0, 1), (1, 5), (5, 12)]
    for bucket in buckets:
        expected = 0.0
        for window in WINDOWS:
            for place in range(bucket.low, bucket.high):
                logs = logits_of(window[None, : place + 1])[0, -1].log_softmax(dim=-1)
                expected -= float(logs[window[place + 1]])
        assert bucket.nll.nll_sum == pytest.approx(expected)
        assert bucket.nll.tokens == 5 * (bucket.high - bucket.low)


def test_the_buckets_of_one_window_add_up_to_its_nll() -> None:
    first, second = (bucket.nll for bucket in loss_by_position(logits_of, WINDOWS[:1], (0, 4, 12)))
    plain = sliding_perplexity(logits_of, WINDOWS[0], window=12, stride=12)
    assert (first + second).nll_sum == pytest.approx(plain.nll_sum)
    assert (first + second).tokens == plain.tokens


@pytest.mark.parametrize("edges", [(0,), (), (0, 0), (3, 1), (-1, 4), (0, 13)])
def test_bad_edges_are_refused(edges: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="edges=.*context=12"):
        loss_by_position(logits_of, WINDOWS, edges)


@pytest.mark.parametrize("windows", [WINDOWS[0], WINDOWS[:, :1], WINDOWS[:0]])
def test_windows_without_targets_are_refused(windows: Tensor) -> None:
    with pytest.raises(ValueError, match="windows="):
        loss_by_position(logits_of, windows, (0, 1))
