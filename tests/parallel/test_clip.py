"""The norm of a spread gradient is the whole gradient's, and so is what clipping leaves."""

from __future__ import annotations

import pytest
import torch
from clip_work import clipped, gradients, norm_of_stages, norm_with_absent, of_partial_sums
from gloo import run_processes
from torch import nn

from toolkit.parallel import clip_gradients

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6}


def whole(dtype: torch.dtype) -> list[nn.Parameter]:
    """One process's parameters with the same gradients."""
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients(dtype)]
    for parameter, gradient in zip(parameters, gradients(dtype), strict=True):
        parameter.grad = gradient
    return parameters


@pytest.mark.parametrize(("dtype", "max_norm"), [(torch.float64, 0.5), (torch.float64, 1e3), (torch.float32, 0.5)])
def test_clipping_over_meshes_is_one_process_s(dtype: torch.dtype, max_norm: float) -> None:
    alone = whole(dtype)
    expected = torch.nn.utils.clip_grad_norm_(alone, max_norm).item()
    for norm, after in run_processes(4, clipped, dtype, max_norm):
        assert norm == pytest.approx(expected, rel=TOLERANCE[dtype])
        for found, parameter in zip(after, alone, strict=True):
            assert parameter.grad is not None
            assert found == pytest.approx(parameter.grad.flatten().tolist(), rel=TOLERANCE[dtype])


@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_in_one_process_it_is_torch_s_bit_for_bit(max_norm: float) -> None:
    ours, torchs = whole(torch.float32), whole(torch.float32)
    assert torch.equal(clip_gradients(ours, max_norm), torch.nn.utils.clip_grad_norm_(torchs, max_norm))
    for mine, its in zip(ours, torchs, strict=True):
        assert mine.grad is not None and its.grad is not None
        assert torch.equal(mine.grad, its.grad)


def test_a_process_without_a_gradient_takes_part() -> None:
    """Rank 0's two rows of the fourth tensor are missing, and nothing waits."""
    pieces = [*gradients()]
    pieces[3] = pieces[3][2:]
    expected = torch.cat([piece.flatten() for piece in pieces]).norm().item()
    assert run_processes(4, norm_with_absent) == pytest.approx([expected] * 4, rel=1e-13)


def test_stages_of_a_pipeline_add_up() -> None:
    expected = torch.cat([piece.flatten() for piece in gradients()[:2]]).norm().item()
    assert run_processes(2, norm_of_stages) == pytest.approx([expected] * 2, rel=1e-13)


def test_partial_sums_are_refused() -> None:
    assert "it must be its parameter's" in run_processes(2, of_partial_sums)[0]


def test_no_gradient_at_all_has_norm_0() -> None:
    assert clip_gradients([nn.Parameter(torch.ones(3))], 1.0) == 0
    assert clip_gradients([], 1.0) == 0


def test_a_bound_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"max_norm=0\.0: it must be positive"):
        clip_gradients([], 0.0)
