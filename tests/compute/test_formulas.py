"""The registered formulas count what the plain loop over experts counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import toolkit.compute  # noqa: F401  # registers the formulas
from toolkit.layers import MoE


def counted(backend: str, tokens: int) -> tuple[int, int]:
    torch.manual_seed(0)
    moe = MoE(dim=32, hidden_dim=16, num_experts=4, top_k=2, backend=backend)
    x = torch.randn(tokens, 32, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        y = moe(x)
    with FlopCounterMode(display=False) as backward:
        y.square().mean().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("backend", ["grouped_mm", "cpu"])
@pytest.mark.parametrize("tokens", [1, 37])
def test_a_backend_counts_what_the_plain_loop_counts(backend: str, tokens: int) -> None:
    assert counted(backend, tokens) == counted("reference", tokens)


def test_the_plain_loop_counts_the_router_and_the_chosen_experts() -> None:
    router, experts = 37 * 32 * 4, 37 * 2 * 3 * 32 * 16
    assert counted("reference", 37) == (2 * (router + experts), 4 * (router + experts))
