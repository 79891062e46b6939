from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from selection_textbook import Largest, compressed, compressed_mask, masked_attention, selected_mask
from torch import Tensor

from toolkit.attention.interface import attention
from toolkit.attention.patterns import Causal, SlidingWindow
from toolkit.attention.selection import NativeSparse, native_sparse

SMALL = NativeSparse(block=8, top_k=4, compress_block=4, stride=2, window=6, initial=1, local=2)


def draw(q_len: int, kv_len: int, heads: int, kv_heads: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    sizes = (2, heads, q_len, 8), (2, kv_heads, kv_len, 8), (2, kv_heads, kv_len, 5)
    inputs = [torch.randn(size, dtype=torch.float64) for size in sizes] + [torch.rand(2, heads, q_len, 3).double()]
    return [x.to(dtype).requires_grad_() for x in inputs]


def settings_of(settings: NativeSparse) -> dict[str, Any]:
    named = asdict(settings)
    return {name: named[name] for name in ("block", "top_k", "compress_block", "stride", "window", "initial", "local")}


def textbook(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor, settings: NativeSparse, selected: Tensor | None = None
) -> Tensor:
    """The three branches, dense; ``selected`` is the mask of the second where it is not found here."""
    (q_len, kv_len), lead = (q.shape[2], k.shape[2]), q.shape[:2]
    keys, values = (compressed(x, settings.compress_block, settings.stride) for x in (k, v))
    ended = compressed_mask(q_len, kv_len, settings.compress_block, settings.stride)
    i, j = torch.arange(kv_len - q_len, kv_len)[:, None], torch.arange(kv_len)
    if selected is None:
        named = settings_of(settings)
        del named["window"]
        selected = selected_mask(q.detach(), keys.detach(), kv_len, **named)
    masks = ended.expand(*lead, -1, -1), selected, ((j <= i) & (i - j < settings.window)).expand(*lead, -1, -1)
    branches = (keys, values), (k, v), (k, v)
    parts = [masked_attention(q, *branch, mask) for branch, mask in zip(branches, masks, strict=True)]
    return sum(gates[..., n, None] * part for n, part in enumerate(parts))  # type: ignore[return-value]


def with_gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).sin().view(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


def close(got: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["blockwise", "reference"])
@pytest.mark.parametrize(("q_len", "kv_len"), [(53, 53), (48, 48), (11, 60), (1, 43), (5, 5), (3, 3), (1, 1)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (4, 1)])
def test_equals_its_definition(backend: str, q_len: int, kv_len: int, heads: int, kv_heads: int) -> None:
    inputs = draw(q_len, kv_len, heads, kv_heads)
    expected = with_gradients(textbook(*inputs, SMALL), inputs)
    close(with_gradients(native_sparse(*inputs, **settings_of(SMALL), backend=backend), inputs), expected)


@pytest.mark.parametrize(
    "settings",
    [
        NativeSparse(block=8, top_k=3, compress_block=8, stride=8, window=1, initial=0, local=1),
        NativeSparse(block=6, top_k=3, compress_block=6, stride=2, window=9, initial=0, local=2),
        NativeSparse(block=4, top_k=5, compress_block=8, stride=4, window=70, initial=2, local=1),
        NativeSparse(block=6, top_k=3, compress_block=3, stride=1, window=5, initial=1, local=2),
    ],
)
def test_equals_its_definition_in_other_sizes(settings: NativeSparse) -> None:
    inputs = draw(47, 47, 4, 2)
    expected = with_gradients(textbook(*inputs, settings), inputs)
    close(with_gradients(native_sparse(*inputs, **settings_of(settings)), inputs), expected)


def test_group_of_sixteen() -> None:
    inputs = draw(43, 43, 16, 1)
    close([SMALL.attend(*inputs)], [textbook(*inputs, SMALL)])


def test_rounds_no_worse_than_the_textbook() -> None:
    inputs = draw(61, 61, 4, 2, torch.float32)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    keys = compressed(exact[1], SMALL.compress_block, SMALL.stride).detach()
    named = settings_of(SMALL)
    del named["window"]
    selected = selected_mask(exact[0].detach(), keys, 61, **named)
    right = with_gradients(textbook(*exact, SMALL, selected), exact)
    plain = with_gradients(textbook(*inputs, SMALL, selected), inputs)
    for one, other, reference in zip(with_gradients(SMALL.attend(*inputs), inputs), plain, right, strict=True):
        assert one.dtype == torch.float32
        bound = 2 * (other.double() - reference).abs().max() + 4 * 2**-23 * reference.abs().max()
        assert (one.double() - reference).abs().max() <= bound


def test_each_gate_opens_its_branch() -> None:
    q, k, v, gates = draw(50, 50, 4, 2)
    dense = NativeSparse(block=8, top_k=7, compress_block=4, stride=2, window=6)
    expected = {1: attention(q, k, v), 2: attention(q, k, v, Causal() & SlidingWindow(6))}
    for branch, out in expected.items():
        only = torch.zeros_like(gates)
        only[..., branch] = 1
        close([dense.attend(q, k, v, only)], [out])
        close([dense.attend(q, k, v, only / 2)], [out / 2])
    only = torch.zeros_like(gates)
    only[..., 0] = 1
    out = dense.attend(q, k, v, only)
    assert (out[:, :, :3] == 0).all()  # the first window ends at position 3
    close([out[:, :, 3]], [v[:, :, :4].mean(dim=2).repeat_interleave(2, dim=1)])


def test_a_group_chooses_together() -> None:
    q, k, _, _ = draw(64, 64, 4, 2)
    keys = k.unfold(2, 4, 2).mean(-1)
    lse = torch.logsumexp(
        (q @ keys.repeat_interleave(2, dim=1).mT * 0.3).masked_fill(~compressed_mask(64, 64, 4, 2), -torch.inf), dim=-1
    )
    chosen = SMALL.choose(q, keys, lse, torch.arange(64), 64, 0.3)
    assert chosen.shape == (2 * 2, 1, 64, 1)
    own = torch.arange(64) // 8
    held = chosen[:, 0, :, 0] >= 0
    assert (held == (own >= 3)).all()
    assert ((chosen[:, 0, :, 0] >= 1) & (chosen[:, 0, :, 0] <= own - 2))[held].all()


def test_branches_with_keys_and_values_of_their_own() -> None:
    q, k, v, gates = draw(40, 40, 4, 2)
    keys, values = (tuple(torch.randn_like(x, requires_grad=True) for _ in range(3)) for x in (k, v))
    mixed = SMALL.attend(q, keys, values, gates)
    inputs = [q, gates, *keys, *values]
    gradients = torch.autograd.grad(mixed.sum(), inputs)
    assert all((gradient != 0).any() for gradient in gradients)
    same = SMALL.attend(q, (k, k, k), (v, v, v), gates)
    close([same], [SMALL.attend(q, k, v, gates)])
    # The window branch has the third of them.
    only = torch.zeros_like(gates)
    only[..., 2] = 1
    close([SMALL.attend(q, keys, values, only)], [attention(q, keys[2], values[2], Causal() & SlidingWindow(6))])
    # The compressed keys choose for the selected branch.
    only = torch.zeros_like(gates)
    only[..., 1] = 1
    named = settings_of(SMALL)
    del named["window"]
    mask = selected_mask(q.detach(), compressed(keys[0], 4, 2).detach(), 40, **named)
    close([SMALL.attend(q, keys, values, only)], [masked_attention(q, keys[1], values[1], mask)])


def test_compression_of_ones_own() -> None:
    q, k, v, gates = draw(40, 40, 4, 2)
    weight = torch.rand(4, 1, dtype=torch.float64, requires_grad=True)

    def compress(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        assert keys.shape == (2, 2, 19, 4, 8) and values.shape == (2, 2, 19, 4, 5)
        return (keys * weight).sum(dim=3), (values * weight).sum(dim=3)

    out = SMALL.attend(q, k, v, gates, compress=compress)
    assert (torch.autograd.grad(out.sum(), weight)[0] != 0).all()
    close([SMALL.attend(q, k, v, gates, compress=lambda k, v: (k.mean(3), v.mean(3)))], [SMALL.attend(q, k, v, gates)])


def test_nothing_after_a_query_reaches_it() -> None:
    q, k, v, gates = draw(50, 50, 4, 2)
    out = SMALL.attend(q, k, v, gates)
    for i in (0, 3, 7, 8, 25, 48):
        for gradient in torch.autograd.grad(out[:, :, i].sum(), (k, v), retain_graph=True):
            assert (gradient[:, :, i + 1 :] == 0).all()
        changed = [
            torch.cat([x[:, :, : i + 1], 9 * torch.randn_like(x[:, :, i + 1 :])], dim=2) for x in (q, k, v, gates)
        ]
        close([SMALL.attend(*changed)[:, :, : i + 1]], [out[:, :, : i + 1]])


def test_decoding_equals_the_whole() -> None:
    q, k, v, gates = draw(51, 51, 4, 2)
    whole, at = SMALL.attend(q, k, v, gates), 0
    for stop in (1, 2, 3, 4, 16, 17, 18, 33, 50, 51):
        part = SMALL.attend(q[:, :, at:stop], k[:, :, :stop], v[:, :, :stop], gates[:, :, at:stop])
        close([part], [whole[:, :, at:stop]])
        at = stop


def test_reruns_are_equal_to_the_bit() -> None:
    inputs = draw(60, 60, 4, 2, torch.float32)
    first, second = (with_gradients(SMALL.attend(*inputs), inputs) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.slow
def test_compiles_whole() -> None:
    inputs = draw(60, 60, 4, 2)
    compiled = torch.compile(SMALL.attend, fullgraph=True, backend="aot_eager")
    close(with_gradients(compiled(*inputs), inputs), with_gradients(SMALL.attend(*inputs), inputs))


def test_makes_nothing_quadratic() -> None:
    q, k, v = (torch.randn(1, heads, 16_384, 4, requires_grad=True) for heads in (2, 1, 1))
    settings = NativeSparse(top_k=4, window=128)
    with Largest() as largest:
        settings.attend(q, k, v, torch.rand(1, 2, 16_384, 3)).sum().backward()
    # By far the most is scores of (query, compressed key), of which a chunk is held: 2**22, and what pads them.
    assert largest.elements <= 1.1 * 2**22 < 16_384**2 / 50


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 17, 40, 61])
def test_counts_the_pairs_of_the_masks(length: int) -> None:
    q, k = torch.randn(1, 4, length, 4), torch.randn(1, 2, length, 4)
    named = settings_of(SMALL)
    window = named.pop("window")
    selected = selected_mask(q, compressed(k, 4, 2), length, **named)[0, 0].sum()
    i, j = torch.arange(length)[:, None], torch.arange(length)
    windows = compressed_mask(length, length, 4, 2)
    areas = SMALL.areas(length)
    assert areas == {"compressed": windows.sum(), "selected": selected, "window": ((j <= i) & (i - j < window)).sum()}
    scores, selection = SMALL.work(length, heads=4, head_dim=4, value_dim=6)
    assert scores.needed == sum(areas.values()) * 4 * (4 + 6)
    assert scores.square == (2 * length**2 + windows.numel()) * 4 * (4 + 6)
    assert scores.computed >= scores.needed
    assert (selection.needed, selection.computed) == (0, windows.sum() * 4 * 4)


def test_prints_as_written_and_hashes() -> None:
    assert repr(NativeSparse(top_k=8)).startswith(
        "NativeSparse(block=64, top_k=8, compress_block=32, stride=16, window=512"
    )
    assert eval(repr(SMALL)) == SMALL and hash(replace(SMALL)) == hash(SMALL)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"block": 0}, "block=0"),
        ({"top_k": 2}, "top_k=2: it must be at least initial"),
        ({"compress_block": 5}, "compress_block=5: it must be a multiple of stride=2"),
        ({"block": 7}, "block=7: it must be a multiple of stride=2"),
        ({"stride": 0}, "stride=0"),
        ({"window": 0}, "window=0"),
        ({"initial": -1}, "initial=-1"),
        ({"local": 0}, "local=0"),
        ({"block": 8.0}, "block=8.0"),
    ],
)
def test_refuses_bad_settings(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(SMALL, **changed)
    with pytest.raises(ValueError, match=named):
        native_sparse(*draw(4, 4, 1, 1), **{**settings_of(SMALL), **changed})


def test_refuses_tensors_that_do_not_fit() -> None:
    q, k, v, gates = draw(20, 20, 4, 2)
    with pytest.raises(ValueError, match=r"gates.shape=\(2, 4, 20, 2\)"):
        SMALL.attend(q, k, v, gates[..., :2])
    with pytest.raises(ValueError, match="k='2 tensors'"):
        SMALL.attend(q, (k, k), v, gates)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="v shapes"):
        SMALL.attend(q, k, (v, v, v[:, :, :9]), gates)
    with pytest.raises(ValueError, match="q_len"):
        SMALL.attend(q, k[:, :, :9], v[:, :, :9], gates)
    with pytest.raises(ValueError, match=r"compressed values=\(2, 2, 9, 4, 5\): it must be \(2, 2, 9, 5\)"):
        SMALL.attend(q, k, v, gates, compress=lambda keys, values: (keys.mean(3), values))
    with pytest.raises(ValueError, match="compress=None"):
        replace(SMALL, compress_hidden_dim=8).attend(q, k, v, gates)


@pytest.mark.slow
def test_agrees_with_flash_linear_attention() -> None:
    naive = pytest.importorskip("fla.ops.nsa.naive")
    size, top_k = 8, 4
    settings = NativeSparse(block=size, top_k=top_k, compress_block=size, stride=size, window=1)
    q, k, v, _ = (x.detach().float() for x in draw(64, 64, 32, 2))
    theirs = [x.transpose(1, 2) for x in (q, k, v)]
    pooled = [x.transpose(1, 2) for x in (compressed(k, size, size), compressed(v, size, size))]
    scale = q.shape[-1] ** -0.5
    expected, _ = naive.naive_nsa_compression(theirs[0], *pooled, size, scale)
    blocks = naive.naive_nsa_topk(theirs[0], pooled[0], top_k, size, scale)
    chosen = naive.naive_nsa_selection(*theirs, blocks, size, scale)
    for branch, out in enumerate((expected, chosen)):
        only = torch.zeros(2, 32, 64, 3)
        only[..., branch] = 1
        torch.testing.assert_close(settings.attend(q, k, v, only).transpose(1, 2), out, rtol=0, atol=2e-6)
