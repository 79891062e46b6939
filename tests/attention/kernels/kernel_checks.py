"""What is checked of the kernels where they run; each function raises an ``AssertionError`` that says what is off."""

from __future__ import annotations

import torch
from guard_bands import guarded
from kernel_cases import Case, build, poisoned
from textbook import Problem, textbook
from torch import Tensor


def compare(got: dict[str, Tensor], problem: Problem, dtype: torch.dtype) -> float:
    """Hold each result to twice the textbook's error in the same dtype and 4 ulp of the greatest; the worst share."""
    right, plain = textbook(problem, torch.float64), textbook(problem, dtype)
    worst = 0.0
    for name, value in got.items():
        finite = right[name].isfinite()
        assert torch.equal(value.isfinite(), finite), f"{name}: not finite where it should be, or finite where not"
        assert torch.equal(value[~finite].double(), right[name][~finite]), f"{name}: {value[~finite]}"
        reference = right[name].where(finite, 0)
        largest = terms_of_sink(problem, right) if name == "d_sink" else reference.abs().max().item()
        error = (value.double().where(finite, 0) - reference).abs().max().item()
        textbook_error = (plain[name].double().where(finite, 0) - reference).abs().max().item()
        bound = 2 * textbook_error + 4 * torch.finfo(value.dtype).eps * largest
        assert error <= bound, f"{name}: error {error:.3g}, bound {bound:.3g}"
        worst = max(worst, error / bound if bound else 0.0)
    return worst


def terms_of_sink(problem: Problem, right: dict[str, Tensor]) -> float:
    """The greatest sum of the sizes of the terms of d_sink: they cancel, so their ulp and not the sum's counts."""
    assert problem.scoring.sink_logits is not None
    terms = (right["out"] * problem.d_out).abs().sum(-1)
    if problem.d_lse is not None:
        terms = terms + problem.d_lse.abs()
    weight = torch.exp(problem.scoring.sink_logits.double()[None, :, None] - right["lse"])
    return (weight * terms).sum((0, 2)).max().item()


def check_forward(case: Case) -> float:
    """Outputs and log-sum-exp, from poisoned memory, twice."""
    from toolkit.attention.kernels.launch import forward

    problem, passes, tiles = build(case)
    q, k, v = poisoned(problem)
    results = []
    for _ in range(2):
        with guarded():
            results.append(forward(q, k, v, passes, problem.scoring, problem.q_start, problem.kv_start, tiles=tiles))
    (out, lse), (out2, lse2) = results
    assert torch.equal(out, out2) and torch.equal(lse, lse2), "a second run differs"
    assert out.dtype == case.dtype and lse.dtype == torch.float32
    return compare({"out": out, "lse": lse}, problem, case.dtype)


def check_backward(case: Case) -> float:
    """Outputs, log-sum-exp and all gradients, from poisoned memory."""
    from toolkit.attention.kernels.launch import backward, forward

    problem, passes, tiles = build(case)
    q, k, v = poisoned(problem)
    where = passes, problem.scoring, problem.q_start, problem.kv_start
    blind = ~problem.mask.any(-1)
    with guarded():
        out, lse = forward(q, k, v, *where, tiles=tiles)
        d_out = (
            problem.d_out.masked_fill(blind[..., None], torch.nan)
            if problem.scoring.sink_logits is None
            else problem.d_out
        )
        d_lse = problem.d_lse
        if d_lse is not None and problem.scoring.sink_logits is None:
            d_lse = d_lse.masked_fill(blind, torch.nan)  # what comes in for a row without keys must not matter
        dq, dk, dv, d_sink = backward(d_out, d_lse, q, k, v, out, lse, *where, tiles=tiles)
    got = {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}
    if d_sink is not None:
        got["d_sink"] = d_sink
    assert all(gradient.dtype == case.dtype for gradient in (dq, dk, dv))
    return compare(got, problem, case.dtype)


def check_decode(case: Case, programs: int) -> float:
    """Outputs and log-sum-exp of decoding, the keys shared out over a number of programs."""
    from toolkit.attention.kernels.launch import can_decode, decode

    problem, passes, tiles = build(case)
    assert all(can_decode(part, case.group) for part in passes), "this case would not be decoded"
    q, k, v = poisoned(problem)
    where = passes, problem.scoring, problem.q_start, problem.kv_start
    with guarded():
        out, lse = decode(q, k, v, *where, tiles=tiles, programs=programs)
    return compare({"out": out, "lse": lse}, problem, case.dtype)


def check_shipped_tiles(case: Case) -> float:
    """Forward and backward on the tiles of the table, which are cut to the size of the problem."""
    from toolkit.attention.kernels.launch import backward, forward

    problem, passes, _ = build(case)
    q, k, v = poisoned(problem)
    where = passes, problem.scoring, problem.q_start, problem.kv_start
    out, lse = forward(q, k, v, *where)
    dq, dk, dv, _ = backward(problem.d_out, None, q, k, v, out, lse, *where)
    return compare({"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}, problem, case.dtype)


def check_large_scores() -> None:
    """Scores of +-1e4, whose exponentials overflow: the greatest key of each row takes all the weight."""
    from toolkit.attention.kernels.launch import forward
    from toolkit.attention.plan import Pass
    from toolkit.attention.scoring import Scoring

    q = torch.full((1, 1, 3, 16), 25.0) * torch.tensor([1.0, -1.0, 1.0])[:, None]
    k = torch.linspace(-25, 25, 40)[None, None, :, None].expand(1, 1, 40, 16)
    v = torch.arange(40.0)[None, None, :, None].expand(1, 1, 40, 16)
    bound = torch.full((1, 1, 3, 1), 40, dtype=torch.int32)
    part = Pass(None, None, 0 * bound, bound, 40)
    out, lse = forward(q, k, v, [part], Scoring(scale=1.0), 0, 0)
    torch.testing.assert_close(out[0, 0, :, 0], torch.tensor([39.0, 0.0, 39.0]))
    torch.testing.assert_close(lse[0, 0], torch.full((3,), 1e4))


def check_blind_decode() -> None:
    """A query that sees nothing: output 0, and the sink or -inf as log-sum-exp."""
    from toolkit.attention.kernels.launch import decode
    from toolkit.attention.plan import Pass
    from toolkit.attention.scoring import Scoring

    nothing = torch.zeros(1, 1, 2, 1, dtype=torch.int32)
    nan = torch.full((1, 2, 2, 16), torch.nan)
    for sinks in (None, torch.tensor([1.0, -2.0])):
        scoring = Scoring(scale=1.0, sink_logits=sinks)
        out, lse = decode(nan, nan, nan, [Pass(None, None, nothing, nothing, 2)], scoring, 0, 0)
        expected = torch.full((2,), -torch.inf) if sinks is None else sinks
        assert bool((out == 0).all())
        torch.testing.assert_close(lse, expected[None, :, None].expand(1, 2, 2))


def check_decode_by_head() -> None:
    """Decoding gives what ``forward`` gives, bit for bit, where the heads of a group see different keys."""
    from toolkit.attention.kernels.launch import can_decode, decode, forward

    problem, passes, tiles = build(Case("by_head", group=2, lengths=(3, 50)))
    where = passes, problem.scoring, problem.q_start, problem.kv_start
    assert not can_decode(passes[0], 2)
    got = decode(problem.q, problem.k, problem.v, *where, tiles=tiles)
    right = forward(problem.q, problem.k, problem.v, *where, tiles=tiles)
    assert all(torch.equal(a, b) for a, b in zip(got, right, strict=True))


def check_tanh() -> None:
    """``tiles.tanh`` within 4 ulp of numpy's in fp64, from 1e-6 to saturation, odd."""
    from probe_kernels import tanh_kernel

    half = torch.logspace(-6, 2, 512)
    x = torch.cat([half, -half])
    y = torch.empty_like(x)
    tanh_kernel[(1,)](x, y, N=1024)
    right = torch.tanh(x.double())
    error = ((y - right) / right).abs().max().item()
    assert error <= 4 * torch.finfo(torch.float32).eps, error


def check_kept(seed: int, row: int, start: int) -> None:
    """``tiles.kept`` against Philox written out in numpy, columns from an odd start."""
    from probe_kernels import kept_kernel
    from textbook import keep_mask

    for p in (0.1, 0.5, 0.9):
        for first in range(start, start + 4):
            out = torch.full((64,), -1, dtype=torch.int32)
            bits = round(p * 2**32)
            kept_kernel[(1,)](torch.tensor([seed]), out, row, first, bits - 2**32 if bits >= 2**31 else bits, N=64)
            right = keep_mask(seed, p, (2, 2, 1, 64), 0, row, first)[1, 1, 0]
            assert torch.equal(out.bool(), right), (p, first)
