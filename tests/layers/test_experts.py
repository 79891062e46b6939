"""The experts' backends are one function, in value and in every gradient, edge cases included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.layers import Experts
from toolkit.layers.experts import BACKENDS, reference_experts
from toolkit.layers.experts.cpu import LOW_PRECISION_ROWS, cpu_experts
from toolkit.layers.experts.grouped_mm import grouped_mm_experts
from toolkit.routing import Assignment

DIM, HIDDEN = 8, 16  # rows that are multiples of 16 bytes in bf16, as grouped_mm wants


def assigned(choices: list[list[int]], num_experts: int, gates: Tensor) -> Assignment:
    """Token t goes to experts choices[t] with the next of ``gates``."""
    token = torch.tensor([t for t, experts in enumerate(choices) for _ in experts], dtype=torch.long)
    expert = torch.tensor([e for experts in choices for e in experts], dtype=torch.long)
    logits = torch.zeros(len(choices), num_experts)
    return Assignment(token, expert, gates, logits, logits)


def random_choices(tokens: int, num_experts: int, top_k: int) -> list[list[int]]:
    return torch.rand(tokens, num_experts).topk(top_k).indices.tolist()


CHOICES: dict[str, tuple[Callable[..., list[list[int]]], tuple[int, ...]]] = {
    "random": (random_choices, (33, 5, 2)),
    "prime": (random_choices, (41, 7, 3)),
    "every expert": (random_choices, (9, 4, 4)),
    "all to one": (lambda: [[2]] * 9, ()),
    "one token": (lambda: [[3, 0]], ()),
    "ragged": (lambda: [[1], [], [0, 3, 2], [3], [1, 0]], ()),
}


@pytest.fixture(params=list(CHOICES))
def choices(request: pytest.FixtureRequest) -> list[list[int]]:
    torch.manual_seed(0)
    make, arguments = CHOICES[request.param]
    return make(*arguments)


def run(backend: str, choices: list[list[int]], num_experts: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """out and the gradients of x, gates and both weights, from the same random tensors for every backend."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *size: torch.randn(size, generator=generator, dtype=torch.float64)  # noqa: E731
    n = sum(map(len, choices))
    tensors = (
        draw(len(choices), DIM),
        draw(n),
        draw(num_experts, 2 * HIDDEN, DIM) * DIM**-0.5,
        draw(num_experts, DIM, HIDDEN) * HIDDEN**-0.5,
    )
    d_out = draw(len(choices), DIM).to(dtype)
    x, gates, gate_up, down = (tensor.to(dtype).requires_grad_() for tensor in tensors)
    out = BACKENDS[backend](x, assigned(choices, num_experts, gates), gate_up, down)
    return out.detach(), *torch.autograd.grad(out, (x, gates, gate_up, down), d_out)


def textbook(x: Tensor, choices: list[list[int]], gates: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The definition, token by token."""
    rows, n = [], 0
    for t, experts in enumerate(choices):
        y = torch.zeros_like(x[t])
        for e in experts:
            gate, up = gate_up[e][:HIDDEN] @ x[t], gate_up[e][HIDDEN:] @ x[t]
            y = y + gates[n] * (down[e] @ (F.silu(gate) * up))
            n += 1
        rows.append(y)
    return torch.stack(rows)


def test_the_reference_is_the_definition_token_by_token(choices: list[list[int]]) -> None:
    experts = Experts(DIM, HIDDEN, 7, backend="reference").double()
    x, gates = torch.randn(len(choices), DIM).double(), torch.randn(sum(map(len, choices))).double()
    expected = textbook(x, choices, gates, experts.gate_up_proj, experts.down_proj)
    torch.testing.assert_close(experts(x, assigned(choices, 7, gates)), expected, rtol=0, atol=1e-12)


def test_cpu_is_the_reference_in_fp64(choices: list[list[int]]) -> None:
    ours, expected = (run(backend, choices, 7, torch.float64) for backend in ("cpu", "reference"))
    for name, mine, theirs in zip(("out", "dx", "dgates", "dgate_up", "ddown"), ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12, msg=partial("{}: {}".format, name))


@pytest.mark.parametrize("backend", ["cpu", "grouped_mm"])
def test_the_others_are_the_reference_in_fp32(backend: str, choices: list[list[int]]) -> None:
    ours, expected = (run(name, choices, 7, torch.float32) for name in (backend, "reference"))
    for name, mine, theirs in zip(("out", "dx", "dgates", "dgate_up", "ddown"), ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5, msg=partial("{}: {}".format, name))


@pytest.mark.parametrize("backend", ["cpu", "grouped_mm"])
def test_bf16_errs_at_most_twice_as_much_as_the_reference_in_bf16(backend: str, choices: list[list[int]]) -> None:
    ours = run(backend, choices, 7, torch.bfloat16)
    theirs = run("reference", choices, 7, torch.bfloat16)
    exact = run("reference", choices, 7, torch.float64)
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        ulp = torch.finfo(torch.bfloat16).eps * truth.abs().max()
        assert (mine - truth).abs().max() <= 2 * (other - truth).abs().max() + 4 * ulp


def test_gradcheck_of_the_cpu_backend() -> None:
    choices = [[1, 0], [2], [], [2, 1]]
    x, gates = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    gate_up, down = torch.randn(4, 4, 3, dtype=torch.float64), torch.randn(4, 3, 2, dtype=torch.float64)
    inputs = tuple(tensor.requires_grad_() for tensor in (x, gates, gate_up, down))
    call = lambda x, gates, *weights: cpu_experts(x, assigned(choices, 4, gates), *weights)  # noqa: E731
    assert torch.autograd.gradcheck(call, inputs)


@pytest.fixture
def _poisoned_buffers() -> Iterator[None]:
    """Uninitialised memory is NaN, so that whatever reads it is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_poisoned_buffers")
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("cpu", torch.float64), ("cpu", torch.float32), ("cpu", torch.bfloat16), ("grouped_mm", torch.float32)],
)
def test_an_expert_without_tokens_gets_exactly_zero_gradient(backend: str, dtype: torch.dtype) -> None:
    out, dx, dgates, dgate_up, ddown = run(backend, [[1], [3, 1], [3]], 5, dtype)
    for tensor in (out, dx, dgates, dgate_up, ddown):
        assert torch.isfinite(tensor).all()
    for expert in (0, 2, 4):
        assert (dgate_up[expert] == 0).all()
        assert (ddown[expert] == 0).all()
    for expert in (1, 3):
        assert (dgate_up[expert] != 0).any()


@pytest.mark.usefixtures("_poisoned_buffers")
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_assignment_at_all_gives_zeros(backend: str) -> None:
    out, dx, dgates, dgate_up, ddown = run(backend, [[], []], 3, torch.float32)
    assert dgates.numel() == 0
    assert all((tensor == 0).all() for tensor in (out, dx, dgate_up, ddown))


def test_padding_to_64_rows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.layers.experts import cpu

    assert LOW_PRECISION_ROWS == 64
    choices = random_choices(33, 5, 2)
    plain = run("cpu", choices, 5, torch.float64)
    sort = cpu.sort_by_expert
    counts: list[int] = []

    def padded(assignment: Assignment, multiple: int) -> object:
        rows = sort(assignment, LOW_PRECISION_ROWS)
        counts.extend(rows.counts)
        return rows

    monkeypatch.setattr(cpu, "sort_by_expert", padded)
    for mine, expected in zip(run("cpu", choices, 5, torch.float64), plain, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-13)
    assert counts
    assert all(count % 64 == 0 for count in counts)


@pytest.mark.parametrize("backend", ["cpu", "reference", "grouped_mm"])
def test_backward_twice_over_one_graph_gives_the_same_gradients(backend: str) -> None:
    experts = Experts(DIM, HIDDEN, 4, backend)
    x, gates = torch.randn(6, DIM, requires_grad=True), torch.rand(12, requires_grad=True)
    out = experts(x, assigned(random_choices(6, 4, 2), 4, gates))
    inputs = (x, gates, experts.gate_up_proj, experts.down_proj)
    first = torch.autograd.grad(out.square().sum(), inputs, retain_graph=True)
    second = torch.autograd.grad(out.square().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", ["cpu", "reference", "grouped_mm"])
def test_relabelling_the_experts_changes_nothing(backend: str) -> None:
    experts, relabelled = Experts(DIM, HIDDEN, 5, backend), Experts(DIM, HIDDEN, 5, backend)
    order = torch.tensor([3, 0, 4, 1, 2])  # new expert n is old expert order[n]
    relabelled.load_state_dict({name: weight[order] for name, weight in experts.state_dict().items()})
    choices, x, gates = random_choices(9, 5, 2), torch.randn(9, DIM), torch.rand(18)
    new_name = order.argsort().tolist()
    renamed = [[new_name[e] for e in chosen] for chosen in choices]
    expected = experts(x, assigned(choices, 5, gates))
    torch.testing.assert_close(relabelled(x, assigned(renamed, 5, gates)), expected)


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference", "grouped_mm"])
def test_bf16_autocast_agrees_with_fp32_and_keeps_fp32_gradients(backend: str) -> None:
    experts = Experts(32, 48, 4, backend)
    x, gates = torch.randn(40, 32), torch.rand(80)
    choices = random_choices(40, 4, 2)
    exact = experts(x, assigned(choices, 4, gates))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = experts(x, assigned(choices, 4, gates))
    assert cast.dtype == torch.bfloat16
    assert exact.dtype == torch.float32
    scale = float(exact.detach().abs().max())
    torch.testing.assert_close(cast.float(), exact, rtol=0, atol=3e-2 * scale)
    d_out = torch.randn(40, 32)
    for parameter in (experts.gate_up_proj, experts.down_proj):
        (gradient,) = torch.autograd.grad(cast, parameter, d_out.bfloat16(), retain_graph=True)
        (expected,) = torch.autograd.grad(exact, parameter, d_out, retain_graph=True)
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, expected, rtol=0, atol=3e-2 * float(expected.abs().max()))


def test_auto_on_a_cpu_is_the_cpu_backend() -> None:
    experts, cpu = Experts(DIM, HIDDEN, 4), Experts(DIM, HIDDEN, 4, backend="cpu")
    cpu.load_state_dict(experts.state_dict())
    x, assignment = torch.randn(6, DIM), assigned(random_choices(6, 4, 2), 4, torch.rand(12))
    assert torch.equal(experts(x, assignment), cpu(x, assignment))


def test_weights_start_at_fan_in_to_the_minus_one_half() -> None:
    experts = Experts(64, 100, 16)
    assert float(experts.gate_up_proj.detach().std()) == pytest.approx(64**-0.5, rel=0.02)
    assert float(experts.down_proj.detach().std()) == pytest.approx(100**-0.5, rel=0.02)
    assert {name: tuple(p.shape) for name, p in experts.named_parameters()} == {
        "gate_up_proj": (16, 200, 64),
        "down_proj": (16, 64, 100),
    }


def test_work_is_three_products_a_row_whatever_the_number_of_experts() -> None:
    for num_experts in (1, 8):
        (work,) = Experts(DIM, HIDDEN, num_experts).work(10)
        assert work.kind == "experts"
        assert work.needed == work.computed == 10 * 3 * DIM * HIDDEN


@pytest.mark.parametrize(
    ("dim", "hidden_dim", "num_experts", "named"),
    [(0, 4, 2, "dim=0"), (4, -1, 2, "hidden_dim=-1"), (4, 4, 0, "num_experts=0")],
)
def test_bad_sizes_are_named(dim: int, hidden_dim: int, num_experts: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Experts(dim, hidden_dim, num_experts)


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"backend='triton'.*'auto', 'reference', 'grouped_mm', 'cpu'"):
        Experts(4, 4, 2, backend="triton")


def test_grouped_mm_names_what_it_cannot_take() -> None:
    def call(dim: int, hidden_dim: int, dtype: torch.dtype) -> None:
        experts = Experts(dim, hidden_dim, 2).to(dtype)
        assignment = assigned([[0]], 2, torch.ones(1))
        grouped_mm_experts(torch.randn(1, dim).to(dtype), assignment, experts.gate_up_proj, experts.down_proj)

    call(8, 16, torch.bfloat16)
    with pytest.raises(ValueError, match=r"dtype=torch\.float64"):
        call(8, 8, torch.float64)
    with pytest.raises(ValueError, match="hidden_dim=6: it must be a multiple of 4"):
        call(8, 6, torch.float32)
    with pytest.raises(ValueError, match=r"^dim=4: it must be a multiple of 8"):
        call(4, 8, torch.bfloat16)


def test_the_reference_is_differentiable_twice_and_the_cpu_backend_refuses() -> None:
    experts = Experts(DIM, HIDDEN, 2).double()
    x = torch.randn(3, DIM, dtype=torch.float64, requires_grad=True)
    assignment = assigned([[0], [1], [0]], 2, torch.rand(3, dtype=torch.float64))
    weights = experts.gate_up_proj, experts.down_proj
    for function in (reference_experts, cpu_experts):
        loss = function(x, assignment, *weights).square().sum()
        if function is cpu_experts:
            with pytest.raises(RuntimeError, match="once only.*reference"):
                torch.autograd.grad(loss, x, create_graph=True)
        else:
            (dx,) = torch.autograd.grad(loss, x, create_graph=True)
            (second,) = torch.autograd.grad(dx.sum(), x)
            assert (second != 0).any()
