"""Rotary positions: relative scores under every scaling, rows of their own, a table that survives modes and casts."""

from __future__ import annotations

import cmath
import copy
import math
import pickle
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.layers import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    NTKScaling,
    ProportionalScaling,
    RotaryEmbedding,
    YaRNScaling,
)
from toolkit.layers.rotary.scaling import RotaryScaling

ONES = [1.0, 1.0, 1.0, 1.0]
SCALINGS = [
    None,
    LinearScaling(3),
    NTKScaling(3),
    DynamicNTKScaling(2, 16),
    YaRNScaling(4, 64),
    LongRoPEScaling(ONES, [1.0, 2.0, 3.0, 4.0], 16, 4),
    Llama3Scaling(8, 64),
    ProportionalScaling(0.5),
]


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


@settings(max_examples=60)
@given(
    st.integers(0, 50_000),
    st.integers(0, 50_000),
    st.integers(0, 50_000),
    st.sampled_from(SCALINGS),
    st.booleans(),
    st.sampled_from([8, 12]),
)
def test_scores_depend_on_the_difference_of_positions_only(
    i: int, j: int, shift: int, scaling: RotaryScaling | None, interleaved: bool, head_dim: int
) -> None:
    if isinstance(scaling, ProportionalScaling):
        head_dim = 8
    rope = RotaryEmbedding(head_dim, 100.0, scaling, fraction=8 / head_dim, interleaved=interleaved)
    q, k = torch.randn(2, 1, 1, 1, head_dim, dtype=torch.float64)

    def score(query: int, key: int) -> float:
        turned_q = rope.rotate(q, torch.tensor([query]), seq_len=150_000)
        turned_k = rope.rotate(k, torch.tensor([key]), seq_len=150_000)
        return float((turned_q * turned_k).sum())

    assert score(i, j) == pytest.approx(score(i + shift, j + shift), abs=1e-9)


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
    torch.testing.assert_close(rope.rotate(x.double()).float(), expected, rtol=0, atol=1e-5)


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


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: type(scaling).__name__)
@pytest.mark.parametrize("cast", ["bfloat16", "half", "double"])
def test_casting_changes_no_frequency(scaling: RotaryScaling | None, cast: str) -> None:
    rope = RotaryEmbedding(8, 100.0, scaling)
    x = torch.randn(1, 2, 40, 8)
    expected, (inv_freq, factor) = rope.rotate(x), rope.frequencies(40)
    getattr(rope, cast)()
    assert list(rope.parameters()) == list(rope.buffers()) == list(rope.state_dict()) == []
    assert torch.equal(rope.frequencies(40)[0], inv_freq) and rope.frequencies(40)[1] == factor
    assert torch.equal(rope.rotate(x), expected)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_each_row_may_have_its_own_positions(fraction: float, interleaved: bool) -> None:
    rope = RotaryEmbedding(8, fraction=fraction, interleaved=interleaved)
    x = torch.randn(3, 2, 6, 8)
    packed = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 2, 3], [7, 8, 9, 0, 1, 0]])
    separate = torch.cat([rope.rotate(x[row : row + 1], packed[row]) for row in range(3)])
    assert torch.equal(rope.rotate(x, packed), separate)
    assert torch.equal(rope.rotate(x, packed[:, None]), separate)
    assert torch.equal(rope.rotate(x[1:2, :, 2:]), separate[1:2, :, 2:])  # a packed document restarts


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: type(scaling).__name__)
def test_offset_positions_are_the_tail_of_a_whole_pass(scaling: RotaryScaling | None) -> None:
    rope = RotaryEmbedding(8, 100.0, scaling)
    q, k = torch.randn(2, 2, 3, 40, 8)
    whole = rope(q, k)
    for length in (1, 7):
        positions = torch.arange(40 - length, 40)
        tail = rope(q[:, :, -length:], k[:, :, -length:], positions, seq_len=40)
        for mine, expected in zip(tail, whole, strict=True):
            assert torch.equal(mine, expected[:, :, -length:])


@pytest.mark.parametrize("scaling", [DynamicNTKScaling(2, 16), LongRoPEScaling(ONES, [1.0, 2.0, 3.0, 4.0], 16, 1)])
def test_a_scaling_that_depends_on_the_length_takes_that_of_the_sequence(scaling: RotaryScaling) -> None:
    rope, x = RotaryEmbedding(8, 100.0, scaling), torch.randn(1, 2, 40, 8)
    assert rope.depends_on_length
    plain = RotaryEmbedding(8, 100.0)
    assert torch.equal(rope.rotate(x[:, :, :16]), plain.rotate(x[:, :, :16]))
    long = rope.rotate(x)
    assert not torch.allclose(long[:, :, :16], plain.rotate(x[:, :, :16]))
    # The same positions at two lengths, in any order: the kept table is of the length, not of the positions alone.
    for _ in range(2):
        assert torch.equal(rope.rotate(x[:, :, :16], seq_len=40), long[:, :, :16])
        assert torch.equal(rope.rotate(x[:, :, :16]), plain.rotate(x[:, :, :16]))
    with pytest.raises(ValueError, match=r"seq_len=None.*with positions given"):
        rope.rotate(x, torch.arange(40))


def test_the_others_do_not_ask_for_the_length() -> None:
    for scaling in SCALINGS:
        rope = RotaryEmbedding(8, 100.0, scaling)
        if not rope.depends_on_length:
            x = torch.randn(1, 1, 4, 8)
            assert torch.equal(rope.rotate(x, torch.arange(4)), rope.rotate(x, seq_len=1000))


@pytest.mark.parametrize("interleaved", [False, True])
def test_dims_past_the_fraction_pass(interleaved: bool) -> None:
    x = torch.randn(2, 3, 5, 12)
    rope = RotaryEmbedding(12, fraction=0.5, interleaved=interleaved)
    out = rope.rotate(x)
    assert torch.equal(out[..., 6:], x[..., 6:])
    assert torch.equal(out[..., :6], RotaryEmbedding(6, interleaved=interleaved).rotate(x[..., :6]))


def test_the_callers_tensors_are_left_as_they_are() -> None:
    rope, (q, k), positions = RotaryEmbedding(8, fraction=0.5), torch.randn(2, 2, 3, 5, 8), torch.arange(5)
    before = q.clone(), k.clone(), positions.clone()
    rope(q, k, positions)
    assert all(torch.equal(now, then) for now, then in zip((q, k, positions), before, strict=True))


def test_fp64_inputs_have_fp64_angles_of_the_fp32_frequencies() -> None:
    rope, x = RotaryEmbedding(4, 300.0), torch.randn(1, 1, 1, 4, dtype=torch.float64)
    position = 123_457
    out = rope.rotate(x, torch.tensor([position]))
    for k, w in enumerate(rope.frequencies(1)[0].double().tolist()):
        turned = complex(float(x[..., k]), float(x[..., k + 2])) * cmath.exp(1j * position * w)
        assert complex(float(out[..., k]), float(out[..., k + 2])) == pytest.approx(turned, abs=1e-10)


@pytest.mark.parametrize("scaling", [None, DynamicNTKScaling(2, 16)])
def test_compiled_it_is_the_same(scaling: RotaryScaling | None) -> None:
    rope = RotaryEmbedding(8, 100.0, scaling, max_position=30)
    compiled = torch.compile(rope.rotate, backend="eager", fullgraph=True)
    x = torch.randn(2, 3, 20, 8)
    assert torch.equal(compiled(x), rope.rotate(x))
    positions = torch.arange(40).reshape(2, 20) % 30
    assert torch.equal(compiled(x, positions, 30), rope.rotate(x, positions, 30))


def test_it_is_copied_with_its_settings() -> None:
    rope, x = RotaryEmbedding(8, 77.0), torch.randn(1, 1, 5, 8)
    y = rope.rotate(x)
    assert torch.equal(copy.deepcopy(rope).rotate(x), y)
    assert "head_dim=8, base=77" in repr(rope)


def test_it_prints_what_was_set() -> None:
    rope = RotaryEmbedding(8, 100.0, YaRNScaling(4, 256), 0.5, interleaved=True, max_position=1023)
    written = "scaling=YaRNScaling(factor=4, original_length=256), fraction=0.5, interleaved=True, max_position=1023"
    assert repr(rope) == f"RotaryEmbedding(head_dim=8, base=100, {written})"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"head_dim": 7}, "head_dim=7"),
        ({"head_dim": 0}, "head_dim=0"),
        ({"base": 0.0}, "base=0"),
        ({"base": -1.0}, "base=-1"),
        ({"fraction": 0.0}, "fraction=0.0"),
        ({"fraction": 1.5}, "fraction=1.5"),
        ({"fraction": -0.5}, "fraction=-0.5"),
        ({"fraction": 0.4}, r"fraction=0.4.*int\(head_dim \* fraction\)=3 is even"),
        ({"fraction": 0.1}, r"fraction=0.1.*=0 is even and above 0"),
        ({"max_position": -1}, "max_position=-1"),
        ({"scaling": "LinearScaling(2)"}, "scaling='LinearScaling.*parse_scaling"),
        ({"scaling": 4}, "scaling=4"),
        ({"softmax_scale_multiplier": 0}, "softmax_scale_multiplier=0"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RotaryEmbedding(**{"head_dim": 8, **settings})


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"positions": torch.tensor([0, 1, -2])}, "positions=-2"),
        ({"positions": torch.tensor([0, 10, 2])}, "positions=10: it must be at most max_position=9"),
        ({"positions": torch.arange(3.0)}, "positions.dtype=torch.float32"),
        ({"positions": torch.arange(4)}, r"positions.shape=\(4,\)"),
        ({"positions": torch.zeros(3, 3, dtype=torch.int64)}, r"positions.shape=\(3, 3\)"),
        ({"seq_len": 2}, "seq_len=2: it must be at least the length=3"),
        ({"x": torch.randn(2, 1, 11, 8)}, "length=11: it must be at most max_position \\+ 1"),
        ({"x": torch.randn(2, 1, 3, 6)}, r"x.shape=\(2, 1, 3, 6\)"),
        ({"x": torch.randn(2, 3, 8)}, r"x.shape=\(2, 3, 8\)"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], named: str) -> None:
    rope = RotaryEmbedding(8, max_position=9)
    rope.rotate(torch.randn(2, 1, 10, 8))
    with pytest.raises(ValueError, match=named):
        rope.rotate(**{"x": torch.randn(2, 1, 3, 8), **arguments})


def test_keys_that_differ_from_queries_by_more_than_heads_are_refused() -> None:
    q = torch.randn(2, 4, 3, 8)
    for shape in [(2, 1, 4, 8), (1, 4, 3, 8), (2, 4, 3, 6)]:
        with pytest.raises(ValueError, match=re.escape(f"k.shape={shape}: it must be q's (2, 4, 3, 8)")):
            RotaryEmbedding(8)(q, torch.randn(shape))


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.float64, torch.bfloat16)])
def test_both_together_are_each_alone(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    rope, positions = RotaryEmbedding(8), torch.tensor([[3, 1, 4], [1, 5, 9]])
    q, k = torch.randn(2, 4, 3, 8, dtype=dtypes[0]), torch.randn(2, 2, 3, 8).to(dtypes[1])
    for at in (None, positions):
        both = rope(q, k, at)
        assert [out.dtype for out in both] == list(dtypes)
        torch.testing.assert_close(both, (rope.rotate(q, at), rope.rotate(k, at)))


def test_a_negative_length_is_named() -> None:
    with pytest.raises(ValueError, match="seq_len=-1"):
        RotaryEmbedding(8).frequencies(-1)


def test_a_setting_that_is_changed_changes_the_table() -> None:
    rope, x = RotaryEmbedding(8), torch.randn(1, 2, 16, 8)
    before = rope.rotate(x)
    rope.scaling = LinearScaling(4.0)
    assert torch.equal(rope.rotate(x), RotaryEmbedding(8, scaling=LinearScaling(4.0)).rotate(x))
    rope.scaling, rope.base = None, 1e6
    assert torch.equal(rope.rotate(x), RotaryEmbedding(8, 1e6).rotate(x))
    rope.base = 10_000.0
    assert torch.equal(rope.rotate(x), before)


def test_a_tracers_table_is_not_kept_and_none_is_saved() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    rope, x = RotaryEmbedding(8), torch.randn(1, 2, 16, 8)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        rope.rotate(mode.from_tensor(x))
    assert torch.equal(rope.rotate(x), RotaryEmbedding(8).rotate(x))
    assert pickle.loads(pickle.dumps(rope))._table is None


def test_a_length_below_the_positions_is_refused() -> None:
    rope, x = RotaryEmbedding(8, scaling=DynamicNTKScaling(2.0, 8)), torch.randn(1, 1, 16, 8)
    for positions, seq_len in ((torch.arange(16), 4), (None, 4), (torch.arange(100, 116), 115)):
        with pytest.raises(ValueError, match=f"seq_len={seq_len}: it must be"):
            rope.rotate(x, positions, seq_len)
    rope.rotate(x, torch.arange(100, 116), 116)


@pytest.mark.parametrize(
    ("name", "value"), [("base", 10**400), ("base", 1e-320), ("base", "x"), ("softmax_scale_multiplier", math.inf)]
)
def test_numbers_beyond_any_use_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}=.*a number from 1e-30 to"):
        RotaryEmbedding(8, **{name: value})
