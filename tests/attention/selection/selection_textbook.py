"""The papers' definitions, dense and pair by pair: boolean masks over all keys, one softmax over what they leave."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    """Softmax over the keys where mask (batch, heads, q_len, kv_len) is true; zeros where it is nowhere.

    Computed in q's dtype, whatever it is.
    """
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = (q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)).masked_fill(~mask, -torch.inf)
    blind = ~mask.any(dim=-1, keepdim=True)
    return scores.masked_fill(blind, 0.0).softmax(dim=-1).masked_fill(blind, 0.0) @ v


def moba_mask(q: Tensor, k: Tensor, block: int, top_k: int) -> Tensor:
    """(batch, heads, q_len, kv_len): Lu et al. 2025, with +inf and -inf for the own block and later ones."""
    (batch, heads, q_len, _), kv_len = q.shape, k.shape[2]
    seen = torch.zeros(batch, heads, q_len, kv_len, dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            keys = k[b, h // (heads // k.shape[1])]
            means = torch.stack([part.mean(dim=0) for part in keys.split(block)])
            for row in range(q_len):
                i = kv_len - q_len + row
                gates = means @ q[b, h, row]
                gates[i // block] = torch.inf
                gates[i // block + 1 :] = -torch.inf
                for chosen in gates.topk(min(top_k, len(gates))).indices.tolist():
                    for j in range(chosen * block, min((chosen + 1) * block, i + 1)):
                        seen[b, h, row, j] = True
    return seen


def compressed_mask(q_len: int, kv_len: int, width: int, stride: int) -> Tensor:
    """(q_len, windows): a window of keys is seen once its last one is."""
    last = torch.tensor([c + width - 1 for c in range(0, kv_len - width + 1, stride)], dtype=torch.int64)
    return last <= torch.arange(kv_len - q_len, kv_len)[:, None]


def compressed(x: Tensor, width: int, stride: int) -> Tensor:
    """(batch, kv_heads, kv_len, d) -> (batch, kv_heads, windows, d): the mean of each window."""
    parts = [x[:, :, c : c + width].mean(dim=2) for c in range(0, x.shape[2] - width + 1, stride)]
    return torch.stack(parts, dim=2) if parts else x[:, :, :0]


def importance(weights: Tensor, kv_len: int, block: int, width: int, stride: int) -> Tensor:
    """(..., windows) -> (..., blocks): every weight times the strides that its window has in the block."""
    blocks = []
    for j in range(0, kv_len, block):
        shared = [max(0, min(j + block, c * stride + width) - max(j, c * stride)) for c in range(weights.shape[-1])]
        blocks.append((weights * torch.tensor(shared, dtype=weights.dtype)).sum(dim=-1) / stride)
    return torch.stack(blocks, dim=-1)


def selected_mask(
    q: Tensor,
    keys: Tensor,
    kv_len: int,
    *,
    block: int,
    top_k: int,
    compress_block: int,
    stride: int,
    initial: int,
    local: int,
) -> Tensor:
    """(batch, heads, q_len, kv_len): Yuan et al. 2025, equations 8 to 12, from the compressed keys."""
    (batch, heads, q_len, _), kv_heads = q.shape, keys.shape[1]
    group = heads // kv_heads
    mask = compressed_mask(q_len, kv_len, compress_block, stride)
    eye = torch.eye(keys.shape[2], dtype=q.dtype).expand(batch, kv_heads, -1, -1)
    weights = masked_attention(q, keys, eye, mask.expand(batch, heads, -1, -1))
    blocks = importance(weights, kv_len, block, compress_block, stride)
    blocks = blocks.unflatten(1, (kv_heads, group)).sum(dim=2)
    seen = torch.zeros(batch, heads, q_len, kv_len, dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            for row in range(q_len):
                i = kv_len - q_len + row
                own = i // block
                forced = {*range(min(initial, own + 1)), *range(max(0, own - local + 1), own + 1)}
                others = sorted(set(range(own + 1)) - forced, key=lambda j: -float(blocks[b, h // group, row, j]))
                for j in [*forced, *others[: max(0, top_k - len(forced))]]:
                    seen[b, h, row, j * block : min((j + 1) * block, i + 1)] = True
    return seen


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operator makes while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, Tensor):
                self.elements = max(self.elements, one.untyped_storage().nbytes() // one.element_size())
        return result
