from __future__ import annotations

import pytest
import torch
from selection_textbook import Largest, masked_attention, moba_mask
from torch import Tensor

from toolkit.attention.interface import attention
from toolkit.attention.patterns import Causal, Chunked
from toolkit.attention.selection import MoBA, moba


def draw(q_len: int, kv_len: int, heads: int, kv_heads: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    sizes = (2, heads, q_len, 8), (2, kv_heads, kv_len, 8), (2, kv_heads, kv_len, 5)
    return [torch.randn(size, dtype=torch.float64).to(dtype).requires_grad_() for size in sizes]


def with_gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).sin().view(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


@pytest.mark.parametrize("backend", ["blockwise", "reference"])
@pytest.mark.parametrize(("q_len", "kv_len"), [(41, 41), (32, 32), (13, 50), (1, 29), (1, 1), (3, 3)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (4, 1)])
@pytest.mark.parametrize(("block", "top_k"), [(8, 3), (5, 2)])
def test_equals_its_boolean_definition(
    backend: str, q_len: int, kv_len: int, heads: int, kv_heads: int, block: int, top_k: int
) -> None:
    inputs = draw(q_len, kv_len, heads, kv_heads)
    mask = moba_mask(*(x.detach() for x in inputs[:2]), block, top_k)
    expected = with_gradients(masked_attention(*inputs, mask), inputs)
    got = with_gradients(moba(*inputs, block, top_k, backend=backend), inputs)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_group_of_sixteen() -> None:
    inputs = draw(21, 21, 16, 1)
    expected = masked_attention(*inputs, moba_mask(*(x.detach() for x in inputs[:2]), 4, 3))
    torch.testing.assert_close(moba(*inputs, 4, 3), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounds_no_worse_than_the_textbook(dtype: torch.dtype) -> None:
    inputs = draw(70, 70, 4, 2, dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    mask = moba_mask(*(x.detach() for x in exact[:2]), 16, 3)
    right = with_gradients(masked_attention(*exact, mask), exact)
    textbook = with_gradients(masked_attention(*inputs, mask), inputs)
    for one, plain, other in zip(with_gradients(moba(*inputs, 16, 3), inputs), textbook, right, strict=True):
        assert one.dtype == dtype
        bound = 2 * (plain.double() - other).abs().max() + 4 * torch.finfo(dtype).eps * other.abs().max()
        assert (one.double() - other).abs().max() <= bound


def test_one_block_is_chunked_and_all_are_causal() -> None:
    inputs = draw(45, 45, 4, 2)
    for top_k, pattern in ((1, Causal() & Chunked(8)), (6, Causal()), (99, Causal())):
        expected = with_gradients(attention(*inputs, pattern), inputs)
        for one, other in zip(with_gradients(moba(*inputs, 8, top_k), inputs), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert not torch.allclose(moba(*inputs, 8, 3), attention(*inputs))


def test_settings_reach_every_part() -> None:
    q, k, v = draw(30, 30, 4, 2)
    sinks = torch.randn(4, dtype=torch.float64, requires_grad=True)
    settings = {"scale": 0.7, "softcap": 1.5, "sink_logits": sinks}
    got, expected = (
        [out, *torch.autograd.grad(out.sin().sum(), (q, k, v, sinks))]
        for out in (moba(q, k, v, 5, 99, **settings), attention(q, k, v, **settings))
    )
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_selection_is_neither_scaled_nor_capped() -> None:
    q, k, v = draw(40, 40, 2, 2)
    mask = moba_mask(q.detach(), k.detach(), 5, 3)
    torch.testing.assert_close(
        moba(q, k, v, 5, 3, scale=-0.3), masked_attention(q, k, v, mask, -0.3), rtol=0, atol=1e-12
    )


def test_can_be_differentiated_twice() -> None:
    inputs = draw(3, 11, 2, 1)
    inputs = [x[:1].detach().requires_grad_() for x in inputs]
    assert not MoBA(4, 2).choose(*inputs[:2]).requires_grad

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return moba(q, k, v, 4, 2, backend="reference")

    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(attend, inputs, fast_mode=True)


def test_nothing_after_a_query_reaches_it() -> None:
    q, k, v = draw(40, 40, 4, 2)
    out = moba(q, k, v, 8, 3)
    for i in (0, 7, 8, 23, 38):
        for gradient in torch.autograd.grad(out[:, :, i].sum(), (k, v), retain_graph=True):
            assert (gradient[:, :, i + 1 :] == 0).all()
            assert (gradient[:, :, i // 8 * 8 : i + 1] != 0).any()
        changed = [torch.cat([x[:, :, : i + 1], 9 * torch.randn_like(x[:, :, i + 1 :])], dim=2) for x in (q, k, v)]
        torch.testing.assert_close(moba(*changed, 8, 3)[:, :, : i + 1], out[:, :, : i + 1], rtol=0, atol=1e-12)


def test_decoding_equals_the_whole() -> None:
    q, k, v = draw(37, 37, 4, 2)
    whole, at = moba(q, k, v, 8, 3), 0
    for stop in (1, 2, 9, 10, 16, 17, 30, 37):
        part = moba(q[:, :, at:stop], k[:, :, :stop], v[:, :, :stop], 8, 3)
        torch.testing.assert_close(part, whole[:, :, at:stop], rtol=0, atol=1e-12)
        at = stop


def test_equal_gates_choose_some_earlier_blocks() -> None:
    q, k, v = draw(32, 32, 2, 2)
    k = torch.ones_like(k)
    chosen = MoBA(4, 3).choose(q, k)
    own = torch.arange(32)[:, None] // 4
    assert ((chosen >= 0).sum(-1) == own[:, 0].clamp(max=2)).all()
    assert (chosen < own).all()
    assert (chosen[..., 0] != chosen[..., 1])[..., 8:].all()
    # Every key weighs alike, so a query whose earlier blocks are all chosen takes the mean of the values.
    torch.testing.assert_close(moba(q, k, v, 4, 3)[:, :, 11], v[:, :, :12].mean(dim=2), rtol=0, atol=1e-12)


def test_reruns_are_equal_to_the_bit() -> None:
    inputs = draw(60, 60, 4, 2, torch.float32)
    first, second = (with_gradients(moba(*inputs, 8, 3), inputs) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.slow
def test_compiles_whole() -> None:
    inputs = draw(40, 40, 4, 2)
    compiled = torch.compile(MoBA(8, 3).attend, fullgraph=True, backend="aot_eager")
    for one, other in zip(*(with_gradients(f(*inputs), inputs) for f in (compiled, MoBA(8, 3).attend)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_makes_nothing_quadratic() -> None:
    inputs = [torch.randn(1, 1, 16_384, 8, requires_grad=True) for _ in range(3)]
    with Largest() as largest:
        moba(*inputs, 512, 3).sum().backward()
    assert largest.elements <= 2**22 < 16_384**2 / 50


@pytest.mark.parametrize("length", [1, 7, 8, 9, 40, 61])
@pytest.mark.parametrize("top_k", [1, 3, 20])
def test_counts_the_pairs_of_the_mask(length: int, top_k: int) -> None:
    q, k = torch.randn(1, 4, length, 4), torch.randn(1, 2, length, 4)
    mask = moba_mask(q, k, 8, top_k)
    settings = MoBA(8, top_k)
    assert settings.area(length) * 4 == mask.sum()
    scores, gates = settings.work(length, heads=4, head_dim=4, value_dim=6)
    assert scores.needed == mask.sum() * (4 + 6)
    assert scores.square == 4 * length**2 * (4 + 6)
    assert scores.computed >= scores.needed
    assert gates.needed == sum(i // 8 for i in range(length)) * 4 * 4 <= gates.square
    assert gates.computed_backward == 0


def test_prints_as_written_and_hashes() -> None:
    assert repr(MoBA(512, 3)) == "MoBA(block=512, top_k=3)"
    assert {MoBA(512, 3): 1}[MoBA(block=512, top_k=3)] == 1


@pytest.mark.parametrize(("block", "top_k", "named"), [(0, 3, "block=0"), (8, 0, "top_k=0"), (8, 1.5, "top_k=1.5")])
def test_refuses_bad_settings(block: int, top_k: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MoBA(block, top_k)
    with pytest.raises(ValueError, match=named):
        moba(*draw(4, 4, 1, 1), block, top_k)


def test_refuses_tensors_that_do_not_fit() -> None:
    q, k, v = draw(9, 5, 4, 2)
    with pytest.raises(ValueError, match="q_len"):
        moba(q, k, v, 4, 2)
    with pytest.raises(ValueError, match="kv_heads"):
        moba(q[:, :3, :5], k, v, 4, 2)


def test_half_precision_gates_are_computed_in_fp32() -> None:
    """Means that bfloat16 cannot tell apart decide all the same."""
    block, q = 4, torch.ones(1, 1, 12, 8, dtype=torch.bfloat16)
    k = torch.zeros(1, 1, 12, 8, dtype=torch.bfloat16)
    k[:, :, :4], k[:, :, 4:8] = 1.0, 1.0
    k[:, :, 5] += 2**-7  # the mean of the second block is 1 + 2**-9: in bfloat16 it would be 1
    assert MoBA(block, 2).choose(q, k)[0, 0, 8:, 0].tolist() == [1, 1, 1, 1]
    k[:, :, 1] += 2**-6
    assert MoBA(block, 2).choose(q, k)[0, 0, 8:, 0].tolist() == [0, 0, 0, 0]
