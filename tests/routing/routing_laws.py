"""Laws that every router owes, each held by its own test file with its own routers."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from toolkit.routing import Assignment, RoutingReplay

DIM, EXPERTS, VOCAB = 6, 5, 11


def pairs(assignment: Assignment) -> dict[tuple[int, int], float]:
    """The gate of every (token, expert) that is computed."""
    triples = zip(assignment.token.tolist(), assignment.expert.tolist(), assignment.weight.tolist(), strict=True)
    found = [((token, expert), weight) for token, expert, weight in triples if expert >= 0]
    assert len(dict(found)) == len(found), "a token stands twice with the same expert"
    return dict(found)


def assert_same_pairs(found: dict[tuple[int, int], float], expected: dict[tuple[int, int], float]) -> None:
    assert found.keys() == expected.keys()
    for pair, weight in expected.items():
        torch.testing.assert_close(found[pair], weight, rtol=1e-5, atol=1e-6)


def tokens_and_ids(tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(tokens, DIM, dtype=dtype), torch.randint(0, VOCAB, (tokens,))


def check_triples(router: nn.Module, tokens: int = 17) -> None:
    """Tokens ascend, experts are in range, and where there is none the gate is 0."""
    x, ids = tokens_and_ids(tokens)
    valid = torch.rand(tokens) < 0.7
    for given in (None, valid):
        assignment = router(x, token_ids=ids, valid=given)
        assert (assignment.token.diff() >= 0).all()
        assert assignment.token.numel() == 0 or 0 <= assignment.token.min() <= assignment.token.max() < tokens
        assert ((assignment.expert >= -1) & (assignment.expert < EXPERTS)).all()
        assert (assignment.weight[assignment.expert < 0] == 0).all()
        assert assignment.logits.shape == assignment.probabilities.shape == (tokens, EXPERTS)
        torch.testing.assert_close(assignment.probabilities.sum(-1), torch.ones(tokens))
        assert int(assignment.dropped) == 0


def check_few_tokens(router: nn.Module) -> None:
    """No token and one token are routed as any number is."""
    for tokens in (0, 1):
        for training in (True, False):
            x, ids = tokens_and_ids(tokens)
            sequences = torch.zeros(tokens, dtype=torch.int64)
            for given in (None, sequences):
                assignment = router.train(training)(x, token_ids=ids, sequence_ids=given)
                assert assignment.tokens == tokens
                assert all(0 <= token < tokens for token, _ in pairs(assignment))
                assert all(torch.isfinite(loss) for loss in assignment.losses.values())


def check_padding(router: nn.Module, tokens: int = 19) -> None:
    """Routes, gates and losses are those of the tokens without the padding among them."""
    x, ids = tokens_and_ids(tokens)
    sequences = torch.arange(tokens) // 7
    valid = torch.rand(tokens) < 0.6
    kept = valid.nonzero().flatten().tolist()
    for training in (True, False):
        for given in (None, sequences):
            padded = deepcopy(router).train(training)(x, token_ids=ids, sequence_ids=given, valid=valid)
            bare = deepcopy(router).train(training)(
                x[valid], token_ids=ids[valid], sequence_ids=None if given is None else given[valid]
            )
            expected = {(kept[token], expert): weight for (token, expert), weight in pairs(bare).items()}
            assert_same_pairs(pairs(padded), expected)
            assert torch.equal(padded.counts(), bare.counts())
            for name, loss in bare.losses.items():
                torch.testing.assert_close(padded.losses[name], loss)


def check_precision(router: nn.Module) -> None:
    """Scores are fp32 under autocast and for a bf16 model, fp64 for an fp64 model."""
    x, ids = tokens_and_ids(17)
    plain = deepcopy(router)(x, token_ids=ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = deepcopy(router)(x, token_ids=ids)
    assert pairs(under) == pairs(plain)
    assert under.logits.dtype == under.weight.dtype == torch.float32
    half = deepcopy(router).bfloat16()(x.bfloat16(), token_ids=ids)
    assert half.logits.dtype == half.weight.dtype == half.probabilities.dtype == torch.float32
    double = deepcopy(router).double()(x.double(), token_ids=ids)
    assert double.logits.dtype == double.weight.dtype == torch.float64


def check_compiles(router: nn.Module, tokens: int = 16) -> None:
    """One graph, so no shape depends on data and nothing waits for the device; the same result."""
    x, ids = tokens_and_ids(tokens)
    sequences, valid = torch.arange(tokens) // 6, torch.arange(tokens) % 5 != 3
    for training, given in ((True, sequences), (True, None), (False, None)):
        eager, compiled = deepcopy(router).train(training), deepcopy(router).train(training)
        torch.manual_seed(3)
        expected = eager(x, token_ids=ids, sequence_ids=given, valid=valid)
        torch._dynamo.reset()
        forward: Callable[..., Assignment] = torch.compile(compiled, fullgraph=True, backend="aot_eager")
        torch.manual_seed(3)
        found = forward(x, token_ids=ids, sequence_ids=given, valid=valid)
        assert_same_pairs(pairs(found), pairs(expected))
        assert len(found.token) == len(expected.token)
        for name, state in eager.state_dict().items():
            torch.testing.assert_close(compiled.state_dict()[name], state)


def earlier_pairs_after_a_change(router: nn.Module, *, changed: int = 12, tokens: int = 24, tries: int = 5) -> bool:
    """Whether no pair of a token before ``changed`` moves, its gate included, when later tokens are others."""
    same = True
    for _ in range(tries):
        x, ids = tokens_and_ids(tokens)
        other, other_ids = x.clone(), ids.clone()
        other[changed:], other_ids[changed:] = tokens_and_ids(tokens - changed)
        other[changed:] += 3 * x[:1]  # and of another kind, so that experts' loads change
        kept = []
        for given, given_ids in ((x, ids), (other, other_ids)):
            torch.manual_seed(7)
            found = pairs(deepcopy(router)(given, token_ids=given_ids))
            kept.append({pair: weight for pair, weight in found.items() if pair[0] < changed})
        same = same and kept[0] == kept[1]
    return same


def check_equivariance(router: nn.Module, tokens: int = 15, gated: bool = True) -> None:
    """Tokens in another order give the same pairs, renamed; so do a gate's experts in another order."""
    x, ids = tokens_and_ids(tokens)
    straight = pairs(deepcopy(router)(x, token_ids=ids))
    order = torch.randperm(tokens)
    shuffled = pairs(deepcopy(router)(x[order], token_ids=ids[order]))
    assert_same_pairs({(order.tolist()[token], expert): gate for (token, expert), gate in shuffled.items()}, straight)
    if gated:
        twin, order = deepcopy(router), torch.randperm(EXPERTS)
        twin.weight.data = twin.weight.data[order]
        shuffled = pairs(twin(x, token_ids=ids))
        renamed = {(token, order.tolist()[expert]): gate for (token, expert), gate in shuffled.items()}
        assert_same_pairs(renamed, straight)


def check_replay(router: nn.Module, tokens: int = 15) -> None:
    """What was chosen in training or evaluation is chosen again in either, with the gates of the present weights."""
    x, ids = tokens_and_ids(tokens)
    twin = deepcopy(router)
    if getattr(twin, "weight", None) is not None:
        torch.nn.init.normal_(twin.weight)
    for recorded in (True, False):
        for played in (True, False):
            with RoutingReplay.record(router) as replay:
                before = router.train(recorded)(x, token_ids=ids)
            with replay.play(twin):
                after = twin.train(played)(x, token_ids=ids)
            assert pairs(after).keys() == pairs(before).keys()
            assert torch.equal(after.logits, twin.score(x))
