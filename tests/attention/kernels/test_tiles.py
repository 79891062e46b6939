"""The pieces the kernels share: the tanh of the soft cap, and which weights dropout keeps."""

from __future__ import annotations

import numpy as np
from interpreted_process import Interpreter
from textbook import philox


def test_tanh_is_accurate_near_zero_and_far_from_it(interpreter: Interpreter) -> None:
    interpreter("check_tanh")


def test_dropout_keeps_what_philox_says_at_any_offset(interpreter: Interpreter) -> None:
    for seed in (0, 1, 2**31, 2**62 + 12345):
        interpreter("check_kept", seed, 3, 1000)


def test_the_oracle_is_philox4x32_10() -> None:
    """The known answers that Random123 ships (kat_vectors, philox4x32 10)."""
    ones = np.array([0xFFFFFFFF])
    assert [int(x[0]) for x in philox(0, *[np.zeros(1, int)] * 4)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    answer = [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert [int(x[0]) for x in philox(2**64 - 1, ones, ones, ones, ones)] == answer
