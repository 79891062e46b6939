"""The Experts module: backends by name, autocast, parameters and their start, cost, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from expert_cases import assigned, random_choices

from toolkit.layers import Activation, Experts
from toolkit.layers.experts import ACTIVATIONS

DIM, HIDDEN = 8, 16
every_backend = pytest.mark.parametrize("backend", ["cpu", "reference", "grouped_mm"])


def case(tokens: int = 9, num_experts: int = 4, top_k: int = 2) -> tuple[torch.Tensor, list[list[int]], torch.Tensor]:
    return torch.randn(tokens, DIM), random_choices(tokens, top_k, num_experts), torch.rand(tokens * top_k)


@every_backend
def test_a_backend_is_its_function_with_the_modules_parameters(backend: str) -> None:
    oracle = Experts(DIM, HIDDEN, 4, "reference", activation="gelu", bias=True)
    experts = Experts(DIM, HIDDEN, 4, backend, activation="gelu", bias=True)
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.uniform_(-0.5, 0.5)
    experts.load_state_dict(oracle.state_dict())
    x, choices, gates = case()
    assignment = assigned(choices, gates, 4)
    torch.testing.assert_close(experts(x, assignment), oracle(x, assignment), rtol=1e-5, atol=1e-6)


def test_auto_on_a_cpu_is_the_cpu_backend() -> None:
    experts, cpu = Experts(DIM, HIDDEN, 4), Experts(DIM, HIDDEN, 4, backend="cpu")
    cpu.load_state_dict(experts.state_dict())
    x, choices, gates = case()
    assert torch.equal(experts(x, assigned(choices, gates, 4)), cpu(x, assigned(choices, gates, 4)))


@every_backend
def test_backward_twice_over_one_graph_gives_the_same_gradients(backend: str) -> None:
    experts = Experts(DIM, HIDDEN, 4, backend)
    x, choices, gates = case()
    inputs = (x.requires_grad_(), gates.requires_grad_(), experts.gate_up_proj, experts.down_proj)
    out = experts(x, assigned(choices, gates, 4))
    first = torch.autograd.grad(out.square().sum(), inputs, retain_graph=True)
    second = torch.autograd.grad(out.square().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_backend
def test_relabelling_the_experts_changes_nothing(backend: str) -> None:
    experts, relabelled = (Experts(DIM, HIDDEN, 5, backend) for _ in range(2))
    order = torch.tensor([3, 0, 4, 1, 2])  # new expert n is old expert order[n]
    relabelled.load_state_dict({name: weight[order] for name, weight in experts.state_dict().items()})
    x, choices, gates = case(num_experts=5)
    new_name = order.argsort().tolist()
    renamed = [[new_name[e] for e in chosen] for chosen in choices]
    expected = experts(x, assigned(choices, gates, 5))
    torch.testing.assert_close(relabelled(x, assigned(renamed, gates, 5)), expected)


@pytest.mark.parametrize(
    ("backend", "recompute"),
    [("auto", False), ("cpu", False), ("cpu", True), ("reference", False), ("grouped_mm", False)],
)
def test_bf16_autocast_agrees_with_fp32_and_keeps_fp32_gradients(backend: str, recompute: bool) -> None:
    experts = Experts(32, 48, 4, backend, bias=True, recompute=recompute)
    x, gates, choices = torch.randn(40, 32), torch.rand(80), random_choices(40, 2, 4)
    exact = experts(x, assigned(choices, gates, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = experts(x, assigned(choices, gates, 4))
    assert cast.dtype == torch.bfloat16
    assert exact.dtype == torch.float32
    scale = float(exact.detach().abs().max())
    torch.testing.assert_close(cast.float(), exact, rtol=0, atol=3e-2 * scale)
    d_out = torch.randn(40, 32)
    for parameter in experts.parameters():
        with torch.autocast("cpu", dtype=torch.bfloat16):  # a backward inside autocast changes nothing
            (inside,) = torch.autograd.grad(cast, parameter, d_out.bfloat16(), retain_graph=True)
        (gradient,) = torch.autograd.grad(cast, parameter, d_out.bfloat16(), retain_graph=True)
        (expected,) = torch.autograd.grad(exact, parameter, d_out, retain_graph=True)
        assert gradient.dtype == torch.float32
        assert torch.equal(inside, gradient)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=3e-2 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_parameters_start_at_fan_in_to_the_minus_one_half_and_biases_at_zero(name: str, bias: bool) -> None:
    experts = Experts(64, 100, 16, activation=name, bias=bias)
    first, width = ("gate_up_proj", 200) if Activation(name).gated else ("up_proj", 100)
    shapes: dict[str, tuple[int, ...]] = {first: (16, width, 64), "down_proj": (16, 64, 100)}
    if bias:
        shapes |= {f"{first}_bias": (16, width), "down_proj_bias": (16, 64)}
    assert {name: tuple(p.shape) for name, p in experts.named_parameters()} == shapes
    assert set(experts.state_dict()) == set(shapes)
    assert float(getattr(experts, first).detach().std()) == pytest.approx(64**-0.5, rel=0.02)
    assert float(experts.down_proj.detach().std()) == pytest.approx(100**-0.5, rel=0.02)
    assert all((p == 0).all() for key, p in experts.named_parameters() if key.endswith("bias"))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_work_is_each_rows_products_whatever_the_number_of_experts(name: str) -> None:
    products = 3 if Activation(name).gated else 2
    for num_experts in (1, 8):
        (work,) = Experts(DIM, HIDDEN, num_experts, activation=name).work(10)
        assert work.kind == "experts"
        assert work.needed == work.computed == work.square == 10 * products * DIM * HIDDEN
        assert work.computed_backward == work.backward == 2


def test_recomputing_runs_the_first_product_again() -> None:
    (work,) = Experts(DIM, HIDDEN, 4, recompute=True).work(10)
    assert work.computed * work.computed_backward == 2 * work.needed + 10 * 2 * DIM * HIDDEN
    assert Experts(DIM, HIDDEN, 4, recompute=True).work(0)[0].computed_backward == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"dim": 0}, "dim=0"),
        ({"hidden_dim": -1}, "hidden_dim=-1"),
        ({"num_experts": 0}, "num_experts=0"),
        ({"backend": "magic"}, "backend='magic'.*'auto', 'reference', 'grouped_mm', 'cpu', 'triton'"),
        ({"activation": "swish"}, "activation='swish'"),
        ({"backend": "reference", "recompute": True}, "recompute=True.*False with backend='reference'.*cpu and triton"),
        ({"backend": "grouped_mm", "recompute": True}, "recompute=True.*False with backend='grouped_mm'"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Experts(**{"dim": 4, "hidden_dim": 4, "num_experts": 2, **settings})


def test_cpu_experts_refuse_tensors_of_a_gpu() -> None:
    experts = Experts(DIM, HIDDEN, 2, backend="cpu")

    class OnGPU:
        is_cuda, device = True, "cuda:0"

    with pytest.raises(ValueError, match="backend='cpu'.*'triton', 'grouped_mm' or 'reference' on cuda:0"):
        experts._resolve(OnGPU())  # type: ignore[arg-type]


@pytest.mark.parametrize("num_experts", [2, 4])
def test_an_assignment_over_another_number_of_experts_is_refused(num_experts: int) -> None:
    experts = Experts(DIM, HIDDEN, 3)
    x, choices, gates = case(num_experts=num_experts)
    with pytest.raises(ValueError, match=rf"^assignment\.num_experts={num_experts}: it must be.*3"):
        experts(x, assigned(choices, gates, num_experts))
