"""Rotary positions: Hugging Face's numbers, relative scores, and a table that survives modes and casts."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.layers import RotaryEmbedding


@pytest.mark.parametrize(("head_dim", "base"), [(8, 10_000.0), (64, 500_000.0), (2, 100.0)])
def test_rotation_is_hugging_faces(head_dim: int, base: float) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": base},
    )
    q, k = torch.randn(2, 4, 33, head_dim), torch.randn(2, 2, 33, head_dim)
    positions = torch.arange(5, 38)
    cos, sin = LlamaRotaryEmbedding(config)(q, positions[None])
    theirs = apply_rotary_pos_emb(q, k, cos, sin)
    for mine, expected in zip(RotaryEmbedding(head_dim, base)(q, k, positions), theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)


def test_each_pair_turns_by_position_times_its_frequency() -> None:
    rope = RotaryEmbedding(6, base=50.0)
    inv_freq, factor = rope.frequencies(10)
    assert factor == 1.0
    assert inv_freq.tolist() == pytest.approx([50.0 ** (-2 * k / 6) for k in range(3)])
    x = torch.randn(1, 1, 4, 6, dtype=torch.float64)
    y = rope.rotate(x)
    for position in range(4):
        for k in range(3):
            a, b = float(x[0, 0, position, k]), float(x[0, 0, position, k + 3])
            angle = position * 50.0 ** (-2 * k / 6)
            assert float(y[0, 0, position, k]) == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-6)
            assert float(y[0, 0, position, k + 3]) == pytest.approx(b * math.cos(angle) + a * math.sin(angle), abs=1e-6)


@settings(max_examples=30)
@given(st.integers(0, 2_000), st.integers(0, 2_000), st.integers(0, 2_000))
def test_scores_depend_on_the_difference_of_positions_only(i: int, j: int, shift: int) -> None:
    rope = RotaryEmbedding(16)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(query: int, key: int) -> float:
        turned = rope.rotate(q, torch.tensor([query])), rope.rotate(k, torch.tensor([key]))
        return float((turned[0] * turned[1]).sum())

    assert score(i, j) == pytest.approx(score(i + shift, j + shift), abs=5e-3)


def test_rotation_keeps_lengths_and_position_zero_keeps_everything() -> None:
    rope, x = RotaryEmbedding(8), torch.randn(2, 3, 50, 8)
    torch.testing.assert_close(rope.rotate(x).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(rope.rotate(x)[:, :, 0], x[:, :, 0])
    assert not torch.equal(rope.rotate(x)[:, :, 1], x[:, :, 1])


def test_default_positions_are_zero_to_length_less_one_and_any_others_can_be_given() -> None:
    rope, x = RotaryEmbedding(8), torch.randn(2, 3, 50, 8)
    whole = rope.rotate(x)
    assert torch.equal(rope.rotate(x, torch.arange(50)), whole)
    assert torch.equal(rope.rotate(x[:, :, 20:30], torch.arange(20, 30)), whole[:, :, 20:30])
    order = torch.randperm(50)
    assert torch.equal(rope.rotate(x[:, :, order], order), whole[:, :, order])


def test_lengths_in_any_order_do_not_confuse_the_table() -> None:
    rope, x = RotaryEmbedding(8), torch.randn(1, 1, 50, 8)
    expected = RotaryEmbedding(8).rotate(x)
    for length in (50, 7, 50, 49, 1):
        assert torch.equal(rope.rotate(x[:, :, :length]), expected[:, :, :length])
    rope.rotate(x[:, :, :7], torch.arange(100, 107))
    assert torch.equal(rope.rotate(x[:, :, :7]), expected[:, :, :7])
    torch.testing.assert_close(rope.rotate(x.double()).float(), expected, rtol=0, atol=1e-6)


def test_a_table_made_under_inference_mode_serves_training() -> None:
    rope, x = RotaryEmbedding(8), torch.randn(2, 3, 5, 8, requires_grad=True)
    with torch.inference_mode():
        evaluated = rope.rotate(x)
    trained = rope.rotate(x)
    assert torch.equal(trained, evaluated)
    d_out = torch.randn(2, 3, 5, 8)
    (gradient,) = torch.autograd.grad(trained, x, d_out)
    # A rotation's transpose is the rotation back.
    torch.testing.assert_close(rope.rotate(gradient), d_out)


def test_positions_made_under_inference_mode_serve_training() -> None:
    rope, x = RotaryEmbedding(8), torch.randn(2, 3, 5, 8, requires_grad=True)
    with torch.inference_mode():
        positions = torch.arange(3, 8)
    rope.rotate(x, positions).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_the_module_leaves_the_angles_in_fp32(dtype: torch.dtype) -> None:
    rope = RotaryEmbedding(8).to(dtype)
    assert list(rope.parameters()) == list(rope.buffers()) == []
    assert rope.frequencies(4)[0].dtype == torch.float32
    x = torch.randn(1, 1, 3_000, 8).to(dtype)
    y = rope.rotate(x)
    assert y.dtype == dtype
    # Computed in fp32 and rounded once; positions in bf16 would collapse above 256.
    assert torch.equal(y, RotaryEmbedding(8).rotate(x.float()).to(dtype))


def test_it_is_copied_with_its_settings() -> None:
    rope, x = RotaryEmbedding(8, 77.0), torch.randn(1, 1, 5, 8)
    y = rope.rotate(x)
    assert torch.equal(copy.deepcopy(rope).rotate(x), y)
    assert "head_dim=8, base=77" in repr(rope)


@pytest.mark.parametrize(
    ("head_dim", "base", "named"),
    [(7, 1e4, "head_dim=7"), (0, 1e4, "head_dim=0"), (8, 0.0, "base=0"), (8, -1.0, "base=-1")],
)
def test_bad_settings_are_named(head_dim: int, base: float, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RotaryEmbedding(head_dim, base)
