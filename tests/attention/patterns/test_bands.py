"""Windows by everybody's convention, chunks and prefixes; their areas in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from toolkit.attention.patterns import Causal, Chunked, Full, Pattern, PrefixLM, SlidingWindow, Window

half: Any = 2.5  # what a config file may hold, whatever the types say


@pytest.mark.parametrize("width", [1, 2, 5, 9, 40])
def test_closed_forms_of_the_area(width: int) -> None:
    n = 9
    within = min(width, n)
    assert Full().area(n, n) == n * n
    assert Causal().area(n, n) == n * (n + 1) // 2
    causal_window = within * n - within * (within - 1) // 2
    assert (Causal() & SlidingWindow(width)).area(n, n) == causal_window
    assert SlidingWindow(width).area(n, n) == 2 * causal_window - n
    assert PrefixLM(within).area(n, n) == within * within + (n - within) * (n + within + 1) // 2


def test_degenerate_bands_are_the_plain_ones() -> None:
    n = 11
    assert torch.equal(Window(-1, -1).mask(n, n), Full().mask(n, n))
    assert torch.equal(Window(-1, 0).mask(n, n), Causal().mask(n, n))
    assert torch.equal(Window(3, 3).mask(n, n), SlidingWindow(4).mask(n, n))
    assert torch.equal((Causal() & SlidingWindow(n)).mask(n, n), Causal().mask(n, n))
    assert torch.equal(SlidingWindow(1).mask(n, n), torch.eye(n, dtype=torch.bool))
    assert torch.equal(Chunked(n).mask(n, n), Full().mask(n, n))
    assert torch.equal(Chunked(1).mask(n, n), torch.eye(n, dtype=torch.bool))
    assert torch.equal(PrefixLM(0).mask(n, n), Causal().mask(n, n))
    assert torch.equal(PrefixLM(n).mask(n, n), Full().mask(n, n))


def test_a_causal_window_of_w_is_the_w_newest_keys() -> None:
    rows = (Causal() & SlidingWindow(3)).mask(6, 6)
    assert rows.sum(dim=1).tolist() == [1, 2, 3, 3, 3, 3]
    assert rows[5].nonzero().flatten().tolist() == [3, 4, 5]


@pytest.mark.parametrize("left", [-1, 0, 1, 3])
@pytest.mark.parametrize("right", [-1, 0, 2])
@pytest.mark.parametrize(("q_len", "kv_len"), [(6, 6), (3, 8)])
def test_from_flash_is_flash_attentions_own_rule(left: int, right: int, q_len: int, kv_len: int) -> None:
    # Its README: query i attends to keys between [i + off - left, i + off + right], off = kv_len - q_len.
    off = kv_len - q_len
    expected = torch.tensor(
        [
            [(left < 0 or j >= i + off - left) and (right < 0 or j <= i + off + right) for j in range(kv_len)]
            for i in range(q_len)
        ]
    )
    assert torch.equal(SlidingWindow.from_flash(left, right).mask(q_len, kv_len), expected)


def hugging_face(mask_function: Callable[..., Any], q_len: int, kv_len: int) -> Tensor:
    from transformers import masking_utils as hf

    mask = hf.sdpa_mask(
        1, q_len, kv_len, q_offset=kv_len - q_len, mask_function=mask_function, allow_is_causal_skip=False
    )
    assert mask is not None
    return mask[0, 0]


@pytest.mark.parametrize("window", [1, 2, 4, 20])
@pytest.mark.parametrize(("q_len", "kv_len"), [(9, 9), (4, 9), (1, 9)])
def test_window_and_chunk_conventions_are_hugging_faces(window: int, q_len: int, kv_len: int) -> None:
    from transformers import masking_utils as hf

    causal = hugging_face(hf.sliding_window_causal_mask_function(window), q_len, kv_len)
    both_sides = hugging_face(hf.sliding_window_bidirectional_mask_function(window), q_len, kv_len)
    chunks = hugging_face(hf.chunked_causal_mask_function(window, torch.zeros(1, dtype=torch.int64)), q_len, kv_len)
    assert torch.equal(SlidingWindow.from_hf(window).mask(q_len, kv_len), causal)
    assert torch.equal((Causal() & SlidingWindow(window)).mask(q_len, kv_len), causal)
    assert torch.equal(SlidingWindow.from_hf(window, causal=False).mask(q_len, kv_len), both_sides)
    assert torch.equal((Causal() & Chunked(window)).mask(q_len, kv_len), chunks)
    assert torch.equal(Causal().mask(q_len, kv_len), hugging_face(hf.causal_mask_function, q_len, kv_len))


@pytest.mark.parametrize("width", [1, 3, 7])
def test_attention_gyms_window_of_w_sees_one_key_more(width: int) -> None:
    gym = pytest.importorskip("attn_gym.masks")
    from torch.nn.attention.flex_attention import create_mask

    theirs = create_mask(gym.generate_sliding_window(width), None, None, 12, 12, device="cpu")[0, 0]
    assert torch.equal((Causal() & SlidingWindow(width + 1)).mask(12, 12), theirs)
    prefix = create_mask(gym.generate_prefix_lm_mask(width), None, None, 12, 12, device="cpu")[0, 0]
    assert torch.equal(PrefixLM(width).mask(12, 12), prefix)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: SlidingWindow(0), "width=0"),
        (lambda: SlidingWindow(-3), "width=-3"),
        (lambda: SlidingWindow(half), r"width=2\.5: it must be a positive integer"),
        (lambda: SlidingWindow.from_hf(0), "width=0"),
        (lambda: Window(half, 0), r"left=2\.5: it must be an integer"),
        (lambda: Window(-2, 0), "left=-2"),
        (lambda: Window(0, -2), "right=-2"),
        (lambda: Chunked(0), "size=0: it must be a positive integer"),
        (lambda: Chunked(half), r"size=2\.5"),
        (lambda: PrefixLM(-1), "length=-1: it must be an integer of 0 or more"),
        (lambda: PrefixLM(half), r"length=2\.5"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], Pattern], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


def test_a_million_tokens_need_no_mask() -> None:
    n, w = 1_000_000, 4_096
    assert Causal().area(n, n) == n * (n + 1) // 2
    assert (Causal() & SlidingWindow(w)).area(n, n) == w * n - w * (w - 1) // 2
