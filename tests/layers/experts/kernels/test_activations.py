"""The activations of the kernels are those of the other backends, and so are their derivatives."""

from __future__ import annotations

import pytest
from interpreted_process import Interpreter

from toolkit.layers.experts.activations import ACTIVATIONS


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_gradients_are_those_of_autograd(interpreter: Interpreter, name: str) -> None:
    interpreter("check_activation", name)
