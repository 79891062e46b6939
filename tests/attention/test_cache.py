"""Caches: what they hold, that decoding over them is the whole forward, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toolkit.attention import (
    Causal,
    DilatedWindow,
    GlobalTokens,
    KeyValueCache,
    Pattern,
    RollingCache,
    Sinks,
    SlidingWindow,
    attend_cached,
    attention,
)

N = 23


def draw(n: int = N) -> tuple[Tensor, Tensor, Tensor]:
    """q (2, 4, n, 8), k (2, 2, n, 8), v (2, 2, n, 6)."""
    shapes = (2, 4, n, 8), (2, 2, n, 8), (2, 2, n, 6)
    q, k, v = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return q, k, v


def decode(
    cache: KeyValueCache, pattern: Pattern, chunks: list[int], tensors: tuple[Tensor, ...], **settings: Tensor
) -> Tensor:
    """The outputs of ``chunks`` fed one after the other."""
    outs = []
    for q, k, v in zip(*(x.split(chunks, dim=2) for x in tensors), strict=True):
        outs.append(attend_cached(attention, q, cache.append(3, k, v), pattern, **settings))
    return torch.cat(outs, dim=2)


WINDOW = Causal() & SlidingWindow(5)
WITH_SINKS = Causal() & (SlidingWindow(5) | Sinks(2))
CHUNKS = [[N], [1] * N, [4, 1, 9, 9], [2, 20, 1], [6] + [1] * 17]


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize(
    ("cache", "pattern"),
    [
        (None, Causal()),
        (None, WITH_SINKS),
        (None, Causal() & (DilatedWindow(3, 2) | GlobalTokens(positions=[0, 7, 15]))),
        ((5, 0), WINDOW),
        ((9, 0), WINDOW),
        ((5, 0), Causal() & DilatedWindow(2, 3)),
        ((5, 2), WITH_SINKS),
        ((3, 7), Causal() & (SlidingWindow(3) | Sinks(7))),
        ((5, 2), WINDOW),
    ],
    ids=str,
)
def test_decoding_in_chunks_is_the_whole_forward(
    cache: tuple[int, int] | None, pattern: Pattern, chunks: list[int]
) -> None:
    tensors = draw()
    expected = attention(*tensors, pattern, backend="reference")
    found = decode(RollingCache(*cache) if cache else KeyValueCache(), pattern, chunks, tensors)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunks", [[1] * N, [4, 1, 9, 9]], ids=str)
def test_learned_sink_logits_join_once_however_many_segments(chunks: list[int]) -> None:
    tensors, sink_logits = draw(), torch.randn(4, dtype=torch.float64)
    expected = attention(*tensors, WITH_SINKS, sink_logits=sink_logits, backend="reference")
    found = decode(RollingCache(5, sinks=2), WITH_SINKS, chunks, tensors, sink_logits=sink_logits)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_rolling_cache_holds_its_window_and_sinks_and_no_more() -> None:
    full, rolling = KeyValueCache(), RollingCache(5, sinks=2)
    for step in range(40):
        k = torch.full((1, 1, 1, 2), float(step))
        full.append(0, k, k)
        segments = rolling.append(0, k, k)
        positions = [int(x) for segment in segments for x in segment.k[0, 0, :, 0]]
        assert positions == sorted(set(positions))
        assert set(positions) >= {*range(min(2, step + 1)), *range(max(0, step - 4), step + 1)}
        assert [segment.start for segment in segments] == [int(segment.v[0, 0, 0, 0]) for segment in segments]
        assert rolling.held(0) <= 7
        assert (full.length(0), rolling.length(0), full.held(0)) == (step + 1,) * 3
    memory = rolling._buffers[0]._k
    assert memory is not None and memory.shape[2] <= 2 * (5 + 1) + 16
    assert (rolling.length(1), rolling.held(1)) == (0, 0)


def test_gradients_flow_through_a_cache() -> None:
    q, k, v = (x.requires_grad_() for x in draw())
    for cache in (KeyValueCache(), RollingCache(5, sinks=2)):
        expected = torch.autograd.grad(attention(q, k, v, WITH_SINKS, backend="reference").sum(), (q, k, v))
        found = torch.autograd.grad(decode(cache, WITH_SINKS, [4, 1, 9, 9], (q, k, v)).sum(), (q, k, v))
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("cache", "pattern"),
    [
        ((5, 0), Causal()),
        ((3, 0), WINDOW),
        ((5, 0), WITH_SINKS),
        ((5, 1), WITH_SINKS),
        ((5, 2), Causal() & (SlidingWindow(5) | GlobalTokens(positions=[3]))),
    ],
    ids=str,
)
def test_a_pattern_that_sees_what_was_forgotten_is_refused(cache: tuple[int, int], pattern: Pattern) -> None:
    with pytest.raises(ValueError, match="it has forgotten positions .* sees"):
        decode(RollingCache(*cache), pattern, [1] * N, draw())


@pytest.mark.parametrize(("settings", "named"), [({"window": 0}, "window=0"), ({"window": 4, "sinks": -1}, "sinks=-1")])
def test_bad_settings_are_named(settings: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RollingCache(**settings)


def test_keys_of_another_shape_are_refused_before_anything_is_held() -> None:
    cache = KeyValueCache()
    cache.append(0, torch.zeros(2, 2, 3, 4), torch.zeros(2, 2, 3, 6))
    for k, v in (((1, 2, 1, 4), (1, 2, 1, 6)), ((2, 2, 1, 5), (2, 2, 1, 6)), ((2, 2, 1, 4), (2, 2, 1, 5))):
        with pytest.raises(ValueError, match=r"[kv]\.shape="):
            cache.append(0, torch.zeros(k), torch.zeros(v))
    assert cache.length(0) == 3


def test_a_prompt_read_in_inference_mode_may_go_on_outside_of_it() -> None:
    tensors, cache = draw(), KeyValueCache()
    expected = attention(*tensors, backend="reference")
    with torch.inference_mode():
        first = attend_cached(
            attention, tensors[0][:, :, :9], cache.append(0, *(x[:, :, :9] for x in tensors[1:])), Causal()
        )
    with torch.no_grad():
        later = attend_cached(
            attention, tensors[0][:, :, 9:], cache.append(0, *(x[:, :, 9:] for x in tensors[1:])), Causal()
        )
    torch.testing.assert_close(torch.cat([first, later], dim=2), expected, rtol=0, atol=1e-12)
