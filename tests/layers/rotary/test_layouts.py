"""Weights carried between the two layouts: scores are kept, and the way back is the way there undone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from toolkit.layers import RotaryEmbedding, YaRNScaling, to_half_rotated, to_interleaved

SIZES = [(3, 8, 8), (2, 8, 4), (1, 6, 6), (2, 2, 2)]


@pytest.mark.parametrize(("heads", "head_dim", "rotary_dim"), SIZES)
def test_scores_are_kept(heads: int, head_dim: int, rotary_dim: int) -> None:
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    q_proj, k_proj = torch.randn(2, heads * head_dim, 5, dtype=torch.float64)
    bias = torch.randn(heads * head_dim, dtype=torch.float64)

    def scores(move: Callable[[Tensor], Tensor], interleaved: bool) -> Tensor:
        scaling = YaRNScaling(4, 32) if rotary_dim > 2 else None
        rope = RotaryEmbedding(head_dim, 100.0, scaling, fraction=rotary_dim / head_dim, interleaved=interleaved)
        q = rearrange(F.linear(x, move(q_proj), move(bias)), "b n (h d) -> b h n d", h=heads)
        k = rearrange(F.linear(x, move(k_proj)), "b n (h d) -> b h n d", h=heads)
        q, k = rope(q, k)
        return q @ k.mT

    def there(weight: Tensor) -> Tensor:
        return to_interleaved(weight, heads, head_dim, rotary_dim)

    def back(weight: Tensor) -> Tensor:
        return to_half_rotated(weight, heads, head_dim, rotary_dim)

    torch.testing.assert_close(scores(there, True), scores(lambda weight: weight, False), rtol=0, atol=1e-11)
    torch.testing.assert_close(scores(back, False), scores(lambda weight: weight, True), rtol=0, atol=1e-11)
    if rotary_dim > 2:  # with one pair the layouts are the same
        assert not torch.allclose(scores(lambda weight: weight, True), scores(lambda weight: weight, False))


@pytest.mark.parametrize(("heads", "head_dim", "rotary_dim"), SIZES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_each_undoes_the_other(heads: int, head_dim: int, rotary_dim: int, shape: tuple[int, ...]) -> None:
    weight = torch.randn(heads * head_dim, *shape)
    sizes = (heads, head_dim, rotary_dim)
    assert torch.equal(to_half_rotated(to_interleaved(weight, *sizes), *sizes), weight)
    assert torch.equal(to_interleaved(to_half_rotated(weight, *sizes), *sizes), weight)
    moved = rearrange(to_interleaved(weight, *sizes), "(h d) ... -> h d ...", h=heads)
    assert torch.equal(moved[:, rotary_dim:], rearrange(weight, "(h d) ... -> h d ...", h=heads)[:, rotary_dim:])


def test_all_dims_are_rotated_by_default() -> None:
    weight = torch.randn(12, 5)
    assert torch.equal(to_interleaved(weight, 2, 6), to_interleaved(weight, 2, 6, 6))
    assert torch.equal(to_half_rotated(weight, 2, 6), to_half_rotated(weight, 2, 6, 6))


def test_it_is_the_permutation_of_metas_checkpoints() -> None:
    # What transformers' conversion of Llama does to queries and keys: (heads, d / 2, 2) -> (heads, 2, d / 2).
    weight = torch.randn(3 * 8, 5)
    theirs = weight.view(3, 4, 2, 5).transpose(1, 2).reshape(24, 5)
    assert torch.equal(to_half_rotated(weight, 3, 8), theirs)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0, 8, 8), "heads=0"),
        ((3, 0, 8), "head_dim=0"),
        ((3, 8, 0), "rotary_dim=0"),
        ((3, 8, 3), "rotary_dim=3"),
        ((3, 8, 10), "rotary_dim=10"),
        ((2, 8, 8), r"weight.shape=\(24, 5\).*2 \* 8"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[int, int, int], named: str) -> None:
    for move in (to_interleaved, to_half_rotated):
        with pytest.raises(ValueError, match=named):
            move(torch.randn(24, 5), *arguments)
