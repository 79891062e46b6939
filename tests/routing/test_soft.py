"""Soft MoE: its weights by the paper's sums, padding, and which tokens see which."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from toolkit.routing import SoftAssignment, SoftRouter

DIM, EXPERTS, SLOTS = 6, 3, 2


def mixed(x: Tensor, soft: SoftAssignment) -> Tensor:
    """The layer with experts that are the identity: x (..., length, dim) -> (..., length, dim)."""
    slots = torch.einsum("...les,...ld->...esd", soft.dispatch, x)
    return torch.einsum("...les,...esd->...ld", soft.combine, slots)


def test_weights_are_the_papers_one_sum_at_a_time() -> None:
    router = SoftRouter(DIM, EXPERTS, SLOTS).double()
    router.scale.data.fill_(3.0)
    router.requires_grad_(False)
    x = torch.randn(5, DIM, dtype=torch.float64)
    soft = router(x)
    rows, phi = x.tolist(), router.weight.tolist()

    def cosine(a: list[float], b: list[float]) -> float:
        return math.fsum(p * q for p, q in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    for t in range(5):
        for e in range(EXPERTS):
            for s in range(SLOTS):
                logit = 3.0 * cosine(rows[t], phi[e][s])
                over_tokens = math.fsum(math.exp(3.0 * cosine(row, phi[e][s])) for row in rows)
                over_slots = math.fsum(math.exp(3.0 * cosine(rows[t], slot)) for expert in phi for slot in expert)
                assert float(soft.logits[t, e, s]) == pytest.approx(logit, rel=1e-12)
                assert float(soft.dispatch[t, e, s]) == pytest.approx(math.exp(logit) / over_tokens, rel=1e-12)
                assert float(soft.combine[t, e, s]) == pytest.approx(math.exp(logit) / over_slots, rel=1e-12)


def test_sequences_are_apart_and_shapes_lead() -> None:
    router, x = SoftRouter(DIM, EXPERTS, SLOTS), torch.randn(2, 4, 7, DIM)
    soft = router(x)
    assert soft.dispatch.shape == soft.combine.shape == soft.logits.shape == (2, 4, 7, EXPERTS, SLOTS)
    torch.testing.assert_close(soft.dispatch.sum(-3), torch.ones(2, 4, EXPERTS, SLOTS))
    torch.testing.assert_close(soft.combine.sum((-1, -2)), torch.ones(2, 4, 7))
    alone = router(x[1, 2])
    torch.testing.assert_close(soft.dispatch[1, 2], alone.dispatch)
    torch.testing.assert_close(soft.combine[1, 2], alone.combine)


def test_the_length_of_tokens_and_slots_does_not_matter_only_the_scale() -> None:
    router, x = SoftRouter(DIM, EXPERTS, SLOTS), torch.randn(7, DIM)
    before = router(x)
    router.weight.data *= torch.rand(EXPERTS, SLOTS, 1) + 0.5
    torch.testing.assert_close(router(10 * x).logits, before.logits)
    router.scale.data *= 2
    torch.testing.assert_close(router(x).logits, 2 * before.logits)


def test_permuting_tokens_permutes_the_output_and_permuting_experts_does_nothing() -> None:
    router, x = SoftRouter(DIM, EXPERTS, SLOTS), torch.randn(7, DIM)
    y, order = mixed(x, router(x)), torch.randperm(7)
    torch.testing.assert_close(mixed(x[order], router(x[order])), y[order])
    router.weight.data = router.weight.data[torch.randperm(EXPERTS)]
    torch.testing.assert_close(mixed(x, router(x)), y)


def test_padding_is_not_read_gets_zeros_and_changes_nothing() -> None:
    router, x = SoftRouter(DIM, EXPERTS, SLOTS), torch.randn(3, 8, DIM)
    valid = torch.rand(3, 8) < 0.6
    valid[1] = False  # a whole sequence of it
    x[~valid] = 1e6
    soft = router(x, valid=valid)
    y = mixed(x, soft)
    assert (soft.dispatch[~valid] == 0).all()
    assert (y[~valid] == 0).all()
    assert torch.isfinite(y).all()
    for row in (0, 2):
        real = x[row][valid[row]]
        torch.testing.assert_close(y[row][valid[row]], mixed(real, router(real)))
    with torch.autograd.set_detect_anomaly(True):
        gradients = torch.autograd.grad(mixed(x, router(x, valid=valid)).sum(), list(router.parameters()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_every_token_depends_on_every_other_so_it_is_not_causal() -> None:
    router = SoftRouter(DIM, EXPERTS, SLOTS)
    assert router.causal == "never"
    for training in (True, False):
        x = torch.randn(5, DIM, requires_grad=True)
        y = mixed(x, router.train(training)(x))
        (gradient,) = torch.autograd.grad(y[0].sum(), x)
        assert (gradient.abs().sum(-1) > 0).all()


def test_one_slot_of_one_expert_is_the_mean_that_all_tokens_share() -> None:
    router, x = SoftRouter(DIM, 1, 1), torch.randn(5, DIM)
    y = mixed(x, router(x))
    torch.testing.assert_close(y, y[:1].expand(5, DIM))
    router.scale.data.zero_()
    torch.testing.assert_close(mixed(x, router(x)), x.mean(0).expand(5, DIM))


def test_gradcheck_in_fp64() -> None:
    router = SoftRouter(4, 3, 2).double()
    x = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])

    def outputs(x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        soft = torch.func.functional_call(router, {"weight": weight, "scale": scale}, (x,), {"valid": valid})
        return soft.dispatch, soft.combine

    assert torch.autograd.gradcheck(outputs, (x, router.weight, router.scale))


def test_a_token_of_zeros_has_a_finite_gradient() -> None:
    router = SoftRouter(DIM, EXPERTS, SLOTS)
    x = torch.zeros(3, DIM, requires_grad=True)
    (gradient,) = torch.autograd.grad(router(x).combine[..., 0].sum(), x)
    assert torch.isfinite(gradient).all()


def test_weights_are_fp32_under_autocast_and_for_a_bf16_model() -> None:
    router, x = SoftRouter(DIM, EXPERTS, SLOTS), torch.randn(5, DIM)
    plain = router(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = router(x)
    assert torch.equal(under.dispatch, plain.dispatch)
    assert torch.equal(under.combine, plain.combine)
    assert router.bfloat16()(x.bfloat16()).dispatch.dtype == torch.float32


@pytest.mark.parametrize("length", [0, 1])
def test_no_token_and_one_token(length: int) -> None:
    x = torch.randn(2, length, DIM)
    y = mixed(x, SoftRouter(DIM, EXPERTS, SLOTS)(x))
    torch.testing.assert_close(y, x)  # one token is in every slot alone


def test_it_compiles_in_one_graph() -> None:
    router, x, valid = SoftRouter(DIM, EXPERTS, SLOTS), torch.randn(2, 7, DIM), torch.rand(2, 7) < 0.7
    torch._dynamo.reset()
    found = torch.compile(router, fullgraph=True, backend="aot_eager")(x, valid=valid)
    torch.testing.assert_close(found.dispatch, router(x, valid=valid).dispatch)
    torch.testing.assert_close(found.combine, router(x, valid=valid).combine)


def test_its_work_is_three_products() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    router, x = SoftRouter(DIM, EXPERTS, SLOTS), torch.randn(7, DIM)
    with FlopCounterMode(display=False) as counter:
        mixed(x, router(x))
    (work,) = router.work(7)
    assert work.kind == "router"
    assert 2 * work.needed == counter.get_total_flops()


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="slots=0: it must be positive"):
        SoftRouter(DIM, EXPERTS, 0)
    router = SoftRouter(DIM, EXPERTS, SLOTS)
    with pytest.raises(ValueError, match="sequence_ids='a tensor': it must be None: a soft router takes sequences as"):
        router(torch.randn(4, DIM), sequence_ids=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"valid.shape=\(4, 1\): it must be \(4,\)"):
        router(torch.randn(4, DIM), valid=torch.ones(4, 1, dtype=torch.bool))
