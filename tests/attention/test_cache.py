"""A cache holds what was appended, layer by layer, in order."""

from __future__ import annotations

import torch

from toolkit.attention import KeyValueCache


def test_an_empty_cache_has_no_length() -> None:
    cache = KeyValueCache()
    assert cache.length() == 0
    assert cache.length(3) == 0


def test_appended_parts_come_back_joined_in_order() -> None:
    k, v = torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 5)
    cache, at = KeyValueCache(), 0
    for length in (2, 1, 4):
        all_k, all_v = cache.append(1, k[:, :, at : at + length], v[:, :, at : at + length])
        at += length
        assert cache.length(1) == at
        assert torch.equal(all_k, k[:, :, :at])
        assert torch.equal(all_v, v[:, :, :at])


def test_layers_do_not_touch_one_another() -> None:
    cache = KeyValueCache()
    first = torch.randn(1, 1, 3, 2)
    cache.append(0, first, first)
    other = torch.randn(1, 1, 5, 2)
    assert torch.equal(cache.append(1, other, other)[0], other)
    assert (cache.length(), cache.length(0), cache.length(1), cache.length(2)) == (3, 3, 5, 0)
    later = torch.randn(1, 1, 1, 2)
    assert torch.equal(cache.append(0, later, later)[0], torch.cat([first, later], dim=2))
