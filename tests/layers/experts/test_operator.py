"""The experts as an operator of torch: its schema, its compiling, its FLOPs, what it refuses."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from expert_cases import CHOICES, SETTINGS, Problem, assert_same, assigned, settings_id
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from toolkit.layers.experts import Experts
from toolkit.layers.experts.operator import (
    backend_module,
    experts_backward_operator,
    experts_flops,
    experts_operator,
)
from toolkit.routing import Assignment

both = pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])


def arguments(problem: Problem, recompute: bool, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """What operator_experts hands to the operator."""
    made = problem.leaves(dtype)
    assignment = assigned(problem.choices, made["gates"])
    weights = (made.get(name) for name in ("first", "second", "first_bias", "second_bias"))
    activation = problem.activation
    how = activation.name, activation.alpha, activation.limit, recompute, "cpu"
    return made["x"], assignment.weight, assignment.token, assignment.expert, *weights, *how


@pytest.mark.parametrize("setting", SETTINGS[:3], ids=settings_id)
@both
@pytest.mark.parametrize("choices", ["ragged", "dropped", "no tokens"])
def test_opcheck_passes(
    setting: dict[str, Any], recompute: bool, choices: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It compares whole outputs of two runs, rows of no expert, which are not written, included.
    monkeypatch.setattr(Tensor, "new_empty", Tensor.new_zeros)
    given = arguments(Problem(CHOICES[choices], **setting), recompute)
    torch.library.opcheck(experts_operator, given)
    x, weight, token, _, *weights, name, alpha, limit, _, backend = (
        value.detach() if isinstance(value, Tensor) else value for value in given
    )
    out, hidden, order, rows, ends = experts_operator(*given)
    d_out = torch.ones_like(out)
    saved = (hidden.detach(), order, rows, ends)
    torch.library.opcheck(
        experts_backward_operator, (d_out, x, weight, token, *weights, *saved, name, alpha, limit, backend)
    )


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fake_tensors_have_the_real_ones_shapes_and_strides(recompute: bool, dtype: torch.dtype) -> None:
    given = arguments(Problem(CHOICES["random"], bias=True), recompute, dtype)
    real = experts_operator(*given)
    with FakeTensorMode() as mode:
        fake = experts_operator(*(mode.from_tensor(v) if isinstance(v, Tensor) else v for v in given))
    for mine, expected in zip(fake, real, strict=True):
        assert (mine.shape, mine.stride(), mine.dtype) == (expected.shape, expected.stride(), expected.dtype)


@pytest.mark.parametrize("choices", ["random", "every expert", "dropped", "all dropped", "no experts"])
@pytest.mark.parametrize("setting", SETTINGS, ids=settings_id)
def test_its_flops_are_those_of_the_plain_loop(choices: str, setting: dict[str, Any]) -> None:
    problem = Problem(CHOICES[choices], **setting)
    for backward in (False, True):
        totals = []
        for backend in ("reference", "cpu"):
            leaves = problem.leaves(torch.float32)
            with FlopCounterMode(display=False) as counter:
                out = problem.compute(backend, leaves)
                if backward:
                    out.sum().backward()
            totals.append(counter.get_total_flops())
        assert totals[0] == totals[1]
        used = sum(e >= 0 for experts in problem.choices for e in experts)
        assert (totals[1] > 0) == (used > 0)


def test_without_values_flops_are_those_of_every_triple() -> None:
    given = arguments(Problem(CHOICES["dropped"]), recompute=False)
    with FakeTensorMode() as mode:
        fake = experts_flops(*(mode.from_tensor(v) if isinstance(v, Tensor) else v for v in given))
    n = sum(map(len, CHOICES["dropped"]))
    assert fake == 2 * n * 3 * 8 * 16


@both
def test_it_compiles_whole_with_its_gradients(recompute: bool) -> None:
    problem = Problem(CHOICES["ragged"], bias=True)

    def call(tensors: dict[str, Tensor]) -> Tensor:
        return problem.compute("cpu", tensors, recompute)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    found = []
    for function in (compiled, call):
        leaves = problem.leaves(torch.float32)
        out = function(leaves)
        gradients = torch.autograd.grad(out.square().sum(), tuple(leaves.values()))
        found.append({"out": out.detach(), **dict(zip(leaves, gradients, strict=True))})
    assert_same(found[0], found[1], atol=0)


def test_a_second_derivative_is_refused_by_name() -> None:
    problem = Problem(CHOICES["ragged"])
    leaves = problem.leaves(torch.float64)
    out = problem.compute("cpu", leaves)
    with pytest.raises(RuntimeError, match="experts' operator can be differentiated once only.*backend='reference'"):
        torch.autograd.grad(out.square().sum(), leaves["x"], create_graph=True)


@both
def test_strided_inputs_and_gradients_are_taken(recompute: bool) -> None:
    problem = Problem(CHOICES["random"], bias=True)
    found = []
    for strided in (False, True):
        leaves = problem.leaves(torch.float64)
        given = dict(leaves)
        if strided:  # the same numbers in transposed and widened memory
            given["x"] = leaves["x"].t().contiguous().t()
            given["first"] = torch.stack([leaves["first"]] * 2, dim=-1)[..., 0]
            given["second"] = leaves["second"].transpose(1, 2).contiguous().transpose(1, 2)
        out = problem.compute("cpu", given, recompute)
        d_out = torch.arange(out.numel(), dtype=out.dtype).view(out.shape[::-1]).t() / 100
        gradients = torch.autograd.grad(out, tuple(leaves.values()), d_out)
        found.append({"out": out.detach(), **dict(zip(leaves, gradients, strict=True))})
    assert_same(found[1], found[0], atol=1e-12)


def test_gradients_only_of_what_is_asked() -> None:
    problem = Problem(CHOICES["ragged"], bias=True)
    whole = problem.run("cpu", torch.float64)
    for name in problem.leaves(torch.float64):
        tensors = {key: value for key, value in problem.tensors(torch.float64).items() if value is not None}
        tensors[name].requires_grad_()
        generator = torch.Generator().manual_seed(2)
        d_out = torch.randn(whole["out"].shape, generator=generator, dtype=torch.float64)
        (gradient,) = torch.autograd.grad(problem.compute("cpu", tensors), tensors[name], d_out)
        assert torch.equal(gradient, whole[f"d_{name}"])


def test_a_missing_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "toolkit.layers.experts.triton", None)  # importing it fails
    monkeypatch.delattr("toolkit.layers.experts.triton", raising=False)
    with pytest.raises(RuntimeError, match="backend='triton' needs the triton package"):
        backend_module("triton")


def test_without_a_backward_pass_no_pre_activations_are_kept() -> None:
    experts, x = Experts(8, 16, 4, "cpu"), torch.randn(6, 8)
    token = torch.arange(6)
    table = torch.zeros(6, 4)
    assignment = Assignment(token, token % 4, torch.rand(6), table, table)
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.toolkit.experts.default:
                seen.append(out[1].shape[0])
            return out

    with Watch():
        expected = experts(x, assignment)
        with torch.no_grad():
            assert torch.equal(experts(x, assignment), expected)
    assert seen == [6, 0]
