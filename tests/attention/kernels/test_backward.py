"""The gradients against the fp64 textbook: every order of rows and columns, every feature, from poisoned memory."""

from __future__ import annotations

import pytest
from interpreted_process import Interpreter
from kernel_cases import Case, pairwise


@pytest.mark.parametrize("case", pairwise(seed=1), ids=str)
def test_gradients_are_those_of_the_textbook(interpreter: Interpreter, case: Case) -> None:
    assert interpreter("check_backward", case) <= 1
