"""How many pairs a selection sees, in closed form: it depends on lengths alone, never on what was chosen."""

from __future__ import annotations


def own_and_chosen(length: int, block: int, top_k: int) -> int:
    """Pairs of ``length`` queries with their own block up to themselves and top_k - 1 earlier blocks, if there are.

    Query i sees i % block + 1 keys of its own block and block * min(i // block, top_k - 1) of others.
    """
    blocks, rest = divmod(length, block)
    own = blocks * _triangle(block) + _triangle(rest)
    slots = min(top_k - 1, blocks)
    # The sum of min(t, slots) over the whole blocks t = 0 .. blocks - 1.
    chosen = _triangle(slots - 1) + (blocks - slots) * slots
    return own + block * (block * chosen + rest * slots)


def earlier_blocks(length: int, block: int) -> int:
    """Pairs of ``length`` queries with the blocks before their own: the sum of i // block."""
    blocks, rest = divmod(length, block)
    return block * _triangle(blocks - 1) + rest * blocks


def ended_windows(length: int, width: int, stride: int) -> int:
    """Pairs of ``length`` queries with the windows of ``width`` keys, ``stride`` apart, that end at or before them."""
    after = max(0, length - width + 1)  # queries that see one or more
    return after + earlier_blocks(after, stride)


def window_count(length: int, width: int, stride: int) -> int:
    """How many windows of ``width`` keys, ``stride`` apart from position 0 on, end within ``length`` keys."""
    return max(0, (length - width) // stride + 1)


def _triangle(n: int) -> int:
    """1 + 2 + ... + n."""
    return n * (n + 1) // 2
