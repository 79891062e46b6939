"""Which tiles suit which card."""

from __future__ import annotations

import subprocess
import sys
from unittest.mock import patch

import pytest
import torch

from toolkit.kernels.families import FAMILIES, family_of, next_power_of_two

HERE, CARD = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("capability", "family"),
    [((8, 0), "sm80"), ((8, 9), "sm80"), ((9, 0), "sm90"), ((10, 0), "sm100"), ((12, 0), "sm80")],
)
def test_a_card_belongs_to_a_family_by_its_capability(capability: tuple[int, int], family: str) -> None:
    with patch("torch.cuda.get_device_capability", return_value=capability):
        assert family_of(CARD) == family


def test_a_card_too_old_is_named() -> None:
    with (
        patch("torch.cuda.get_device_capability", return_value=(7, 5)),
        pytest.raises(ValueError, match=r"device='compute capability 7.5': it must be 8.0 or later"),
    ):
        family_of(CARD)


def test_amd_and_the_interpreter_have_families_too() -> None:
    assert family_of(HERE) in FAMILIES
    with patch("torch.version.hip", "6.4"):
        assert family_of(CARD) == "gfx942"


@pytest.mark.parametrize(("number", "power"), [(0, 1), (1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_powers_of_two(number: int, power: int) -> None:
    assert next_power_of_two(number) == power


def test_importing_them_needs_no_triton() -> None:
    program = "import sys; sys.modules['triton'] = None; import toolkit.kernels.families, toolkit.kernels.launch"
    subprocess.run([sys.executable, "-c", program], check=True)
