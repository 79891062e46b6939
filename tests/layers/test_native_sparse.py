from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from einops import repeat
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from toolkit.attention.selection import NativeSparse
from toolkit.layers.native_sparse import NativeSparseBranches, WindowCompression

SETTINGS = NativeSparse(block=8, top_k=4, compress_block=4, stride=2, window=6)
DIM, HEADS, KV_HEADS, HEAD_DIM, LENGTH = 12, 4, 2, 8, 40


def drawn(copies: int = 1) -> list[Tensor]:
    """x, q, k, v."""
    sizes = (LENGTH, DIM), (HEADS, LENGTH, HEAD_DIM), *2 * ((copies * KV_HEADS, LENGTH, HEAD_DIM),)
    return [torch.randn(2, *size, dtype=torch.float64, requires_grad=True) for size in sizes]


def build(settings: NativeSparse) -> NativeSparseBranches:
    return NativeSparseBranches(settings, DIM, HEADS, KV_HEADS, HEAD_DIM).double()


def test_gates_are_sigmoids_of_the_tokens() -> None:
    branches, (x, q, k, v) = build(SETTINGS), drawn()
    expected = torch.sigmoid(torch.einsum("bnd,hcd->bhnc", x, branches.gate_proj.view(HEADS, 3, DIM)))
    torch.testing.assert_close(branches.gates(x), expected)
    torch.testing.assert_close(branches(x, q, k, v), SETTINGS.attend(q, k, v, expected))
    assert list(branches.state_dict()) == ["gate_proj"]


def test_everything_learns() -> None:
    branches, inputs = build(replace(SETTINGS, compress_hidden_dim=5, separate_kv=True)), drawn(3)
    branches(*inputs).square().sum().backward()
    for tensor in (*inputs, *branches.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all() and (tensor.grad != 0).any()
    assert len(list(branches.parameters())) == 1 + 2 * 3


def test_branches_with_keys_of_their_own_take_their_heads_in_order() -> None:
    branches, (x, q, k, v) = build(replace(SETTINGS, separate_kv=True)), drawn(3)
    assert branches.key_heads == 3 * KV_HEADS
    keys, values = (tuple(one.chunk(3, dim=1)) for one in (k, v))
    expected = SETTINGS.attend(q, keys, values, branches.gates(x))  # type: ignore[arg-type]
    torch.testing.assert_close(branches(x, q, k, v), expected)


def test_decoding_equals_the_whole() -> None:
    branches, (x, q, k, v) = build(replace(SETTINGS, compress_hidden_dim=5)), drawn()
    whole = branches(x, q, k, v)
    for at, stop in ((0, 3), (3, 4), (4, 29), (29, LENGTH)):
        part = branches(x[:, at:stop], q[:, :, at:stop], k[:, :, :stop], v[:, :, :stop])
        torch.testing.assert_close(part, whole[:, :, at:stop], rtol=0, atol=1e-12)


def test_compression_is_an_mlp_of_window_and_place() -> None:
    compression = WindowCompression(4, HEAD_DIM, 7).double()
    nn.init.normal_(compression.position)
    windows = torch.randn(3, 4, HEAD_DIM, dtype=torch.float64)
    up, down = (nn.Linear(w.shape[1], w.shape[0], bias=False).double() for w in (compression.up, compression.down))
    up.weight, down.weight = compression.up, compression.down
    expected = [down(nn.functional.gelu(up((window + compression.position).flatten()))) for window in windows]
    torch.testing.assert_close(compression(windows), torch.stack(expected))
    assert not torch.allclose(compression(windows), compression(windows.flip(1)))
    same = repeat(windows, "n l d -> b n l d", b=2)
    torch.testing.assert_close(compression(same)[1], compression(windows))


def test_initialisation() -> None:
    torch.manual_seed(1)
    branches = NativeSparseBranches(replace(SETTINGS, compress_hidden_dim=64), 256, 16, 4, 64)
    assert branches.compress_keys is not None
    for weight in (branches.gate_proj, branches.compress_keys.up, branches.compress_keys.down):
        assert weight.std().item() == pytest.approx(weight.shape[1] ** -0.5, rel=0.1)
    assert (branches.compress_keys.position == 0).all()


def test_work_of_the_learned_parts_is_what_is_run() -> None:
    settings = replace(SETTINGS, compress_hidden_dim=5)
    branches = NativeSparseBranches(settings, DIM, HEADS, KV_HEADS, HEAD_DIM)
    projections, *products = branches.work(LENGTH)
    x, windows = torch.randn(1, LENGTH, DIM), torch.randn(1, KV_HEADS, LENGTH, HEAD_DIM).unfold(2, 4, 2).mT
    with FlopCounterMode(display=False) as counter:
        branches.gates(x)
        branches._compress(windows, windows)
    assert 2 * projections.needed == counter.get_total_flops()
    assert products == settings.work(LENGTH, HEADS, HEAD_DIM)
    assert build(SETTINGS).work(LENGTH)[0].needed == LENGTH * DIM * 3 * HEADS


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="heads=5"):
        NativeSparseBranches(SETTINGS, DIM, 5, 2, HEAD_DIM)
    with pytest.raises(ValueError, match="head_dim=0"):
        NativeSparseBranches(SETTINGS, DIM, 4, 2, 0)
    with pytest.raises(ValueError, match="hidden_dim=0"):
        WindowCompression(4, 8, 0)
    x, q, k, v = drawn()
    with pytest.raises(ValueError, match="k heads=2: it must be 6"):
        build(replace(SETTINGS, separate_kv=True))(x, q, k, v)


def test_prints_its_settings() -> None:
    assert "NativeSparse(block=8" in repr(build(SETTINGS))
