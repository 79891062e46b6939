from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from toolkit.attention.selection.areas import earlier_blocks, ended_windows, own_and_chosen, window_count

lengths, sizes = st.integers(0, 90), st.integers(1, 20)


@given(lengths, sizes, st.integers(1, 9))
def test_own_and_chosen(length: int, block: int, top_k: int) -> None:
    pairs = sum(i % block + 1 + block * min(i // block, top_k - 1) for i in range(length))
    assert own_and_chosen(length, block, top_k) == pairs
    assert own_and_chosen(length, block, length + 1) == length * (length + 1) // 2


@given(lengths, sizes)
def test_earlier_blocks(length: int, block: int) -> None:
    assert earlier_blocks(length, block) == sum(i // block for i in range(length))


@given(lengths, sizes, sizes)
def test_windows(length: int, width: int, stride: int) -> None:
    last = [c + width - 1 for c in range(0, length, stride) if c + width <= length]
    assert window_count(length, width, stride) == len(last)
    assert ended_windows(length, width, stride) == sum(end <= i for end in last for i in range(length))
