"""The generator is Philox4x32-10: published vectors, plain Python, and Triton's own, in its interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from toolkit.attention.dropout import keep_mask, philox

WORD = 0xFFFFFFFF


def by_hand(seed: int, counter: tuple[int, int, int, int]) -> list[int]:
    """Philox4x32-10 in Python integers, as the paper writes it."""
    key, x = [seed & WORD, seed >> 32 & WORD], list(counter)
    for _ in range(10):
        first, second = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [second >> 32 ^ x[1] ^ key[0], second & WORD, first >> 32 ^ x[3] ^ key[1], first & WORD]
        key = [key[0] + 0x9E3779B9 & WORD, key[1] + 0xBB67AE85 & WORD]
    return x


def words(seed: int, counter: tuple[int, int, int, int]) -> list[int]:
    signed = seed - 2**64 if seed >= 2**63 else seed
    return [int(word) for word in philox(torch.tensor([signed]), *(torch.tensor(c) for c in counter))]


@pytest.mark.parametrize(
    ("seed", "counter", "expected"),
    [
        (0, (0,) * 4, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (2**64 - 1, (WORD,) * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            0x299F31D0A4093822,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers_of_random123(seed: int, counter: tuple[int, int, int, int], expected: str) -> None:
    assert [f"{word:08x}" for word in words(seed, counter)] == expected.split()


def test_random_counters_and_seeds_agree_with_plain_integers() -> None:
    for draw in torch.randint(0, 2**32, (50, 6)).tolist():
        seed, counter = draw[0] << 32 | draw[1], tuple(draw[2:])
        assert words(seed, counter) == by_hand(seed, counter)


def mask_by_hand(seed: int, batch: int, head: int, query: Tensor, key: Tensor, p: float) -> Tensor:
    keep = [
        [by_hand(seed, (j // 4, i, head, batch))[j % 4] >= round(p * 2**32) for j in key.tolist()]
        for i in query.tolist()
    ]
    return torch.tensor(keep)


@pytest.mark.parametrize("key", [torch.arange(6, 25), torch.tensor([40, 3, 8, 9, 3]), torch.tensor([7])])
def test_a_weight_is_kept_by_its_own_word(key: Tensor) -> None:
    seed, query = 2**40 + 17, torch.tensor([0, 5, 900])
    heads, batch = torch.arange(2)[:, None, None], torch.arange(3)[:, None, None, None]
    kept = keep_mask(torch.tensor([seed]), batch, heads, query[:, None], key, 0.4)
    assert kept.shape == (3, 2, 3, len(key))
    for b in range(3):
        for h in range(2):
            assert torch.equal(kept[b, h], mask_by_hand(seed, b, h, query, key, 0.4))
    pairs = keep_mask(
        torch.tensor([seed]), *(torch.zeros(1, dtype=torch.long),) * 2, query[:, None], key + query[:, None], 0.4
    )
    for r, i in enumerate(query):
        assert torch.equal(pairs[r], mask_by_hand(seed, 0, 0, i[None], key + i, 0.4)[0])


def test_the_share_that_is_kept() -> None:
    one, n = torch.zeros(1, dtype=torch.long), 512
    for p in (0.0, 0.1, 0.5, 0.9):
        kept = keep_mask(torch.tensor([3]), one, one, torch.arange(n)[:, None], torch.arange(n), p)
        assert abs(float(kept.double().mean()) - (1 - p)) < 5 * (p * (1 - p)) ** 0.5 / n + 1e-9


def test_seeds_heads_batches_and_places_are_independent() -> None:
    where = [torch.tensor([3]), *(torch.zeros(1, dtype=torch.long) for _ in range(2))]
    query, key = torch.arange(64)[:, None], torch.arange(64)
    base = keep_mask(*where, query, key, 0.5)
    moved = [keep_mask(*(x + (n == other) for n, x in enumerate(where)), query, key, 0.5) for other in range(3)]
    moved += [keep_mask(*where, query + 64, key, 0.5), keep_mask(*where, query, key + 64, 0.5)]
    for other in moved:
        assert 0.45 < float((base == other).double().mean()) < 0.55


TRITON = """
import torch, triton, triton.language as tl

@triton.jit
def kernel(out, seed, c1, c2, c3, N: tl.constexpr):
    group = tl.arange(0, N)
    zero = group * 0
    words = tl.philox(tl.load(seed), group, zero + c1, zero + c2, zero + c3)
    for lane in tl.static_range(4):
        tl.store(out + group * 4 + lane, words[lane].to(tl.int64))

out = torch.zeros(64, dtype=torch.int64)
for seed in (0, 123456789012345678, -5):
    kernel[(1,)](out, torch.tensor([seed]), 1000, 3, 2, N=16)
    print(*out.tolist())
"""


def test_tritons_generator_gives_the_same_words() -> None:
    pytest.importorskip("triton")
    run = subprocess.run(
        [sys.executable, "-c", _as_file(TRITON)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    group = torch.arange(16)
    for seed, line in zip((0, 123456789012345678, -5), run.stdout.splitlines(), strict=True):
        ours = philox(torch.tensor([seed]), group, *(torch.tensor(c) for c in (1000, 3, 2)))
        assert torch.stack(ours, dim=-1).flatten().tolist() == [int(word) for word in line.split()]


def _as_file(source: str) -> str:
    """A program that runs ``source`` from a file: Triton reads a kernel's text."""
    return (
        "import runpy, tempfile, pathlib\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        f"    path = pathlib.Path(folder, 'kernel.py'); path.write_text({source!r})\n"
        "    runpy.run_path(str(path))\n"
    )
