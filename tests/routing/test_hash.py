"""Hash routing: the table decides; its balance; the learned gate against Hugging Face's."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from routing_laws import (
    DIM,
    EXPERTS,
    VOCAB,
    check_compiles,
    check_equivariance,
    check_few_tokens,
    check_padding,
    check_precision,
    check_replay,
    check_triples,
    earlier_pairs_after_a_change,
)
from torch import Tensor

from toolkit.routing import HashRouter, RouterZLoss
from toolkit.routing.hash import balanced_table, random_table

LEARNED = {"vocab_size": VOCAB, "dim": DIM}


@pytest.mark.parametrize(("score", "top_k", "scale"), [("sqrt_softplus", 3, 2.5), ("sigmoid", 2, 1.0)])
def test_with_a_gate_it_is_deepseek_v4s(score: str, top_k: int, scale: float) -> None:
    from transformers.models.deepseek_v4 import DeepseekV4Config
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HashRouter

    config = DeepseekV4Config(
        hidden_size=DIM,
        num_local_experts=EXPERTS,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=top_k,
        vocab_size=VOCAB,
        scoring_func=score.replace("_softplus", "softplus"),
        routed_scaling_factor=scale,
    )
    theirs = DeepseekV4HashRouter(config)
    ours = HashRouter(EXPERTS, top_k, score=score, scale=scale, **LEARNED)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight)
        theirs.tid2eid.copy_(ours.table)
    x, ids = torch.randn(21, DIM, requires_grad=True), torch.randint(0, VOCAB, (21,))
    logits, weights, indices = theirs(x, ids)
    assignment = ours(x, token_ids=ids)
    assert torch.equal(assignment.indices, indices)
    torch.testing.assert_close(assignment.logits, logits)
    torch.testing.assert_close(assignment.weights, weights, rtol=1e-5, atol=1e-6)
    pull = torch.randn(21, top_k)
    found = torch.autograd.grad((assignment.weights * pull).sum(), (x, ours.weight))
    expected = torch.autograd.grad((weights * pull).sum(), (x, theirs.weight))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("top_k", [1, 2])
def test_without_a_gate_experts_are_the_tables_rows_and_nothing_is_learned(top_k: int) -> None:
    router = HashRouter(EXPERTS, top_k, vocab_size=VOCAB)
    ids = torch.randint(0, VOCAB, (21,))
    assignment = router(torch.randn(21, DIM), token_ids=ids)
    assert assignment.indices.tolist() == [router.table[n].tolist() for n in ids.tolist()]
    assert (assignment.weight == 1 / top_k).all()
    assert list(router.parameters()) == []
    assert router.work(7) == []
    again = router.eval()(torch.randn(21, DIM), token_ids=ids)
    assert torch.equal(again.expert, assignment.expert)


@pytest.mark.parametrize("settings", [{"vocab_size": VOCAB}, LEARNED, {**LEARNED, "losses": [RouterZLoss()]}])
def test_the_laws_of_every_router(settings: dict[str, object]) -> None:
    router = HashRouter(EXPERTS, 2, **settings)
    check_triples(deepcopy(router))
    check_few_tokens(deepcopy(router))
    check_replay(deepcopy(router))
    check_padding(router)
    check_precision(router)
    check_equivariance(router, gated=False)
    check_compiles(router)
    assert router.causal == "always"
    assert earlier_pairs_after_a_change(router)
    assert earlier_pairs_after_a_change(router.eval())


@given(st.integers(0, 2**31), st.integers(1, 6), st.data())
def test_a_random_table_has_different_experts_for_each_id(seed: int, num_experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    table = random_table(9, num_experts, top_k, seed)
    assert table.shape == (9, top_k)
    assert all(len(set(row)) == top_k and max(row) < num_experts for row in table.tolist())
    assert torch.equal(table, random_table(9, num_experts, top_k, seed))


def test_a_random_table_uses_experts_alike_and_seeds_differ() -> None:
    counts = torch.bincount(random_table(4000, 8, 2, 0).flatten())
    assert float((counts - 1000).abs().max()) < 4 * 1000**0.5
    assert not torch.equal(random_table(40, 8, 2, 0), random_table(40, 8, 2, 1))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 5), st.data())
def test_in_a_balanced_table_no_expert_was_given_its_last_id_while_others_had_less(
    frequencies: list[int], num_experts: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    table = balanced_table([float(f) for f in frequencies], num_experts, top_k).tolist()
    assert all(len(set(row)) == top_k for row in table)
    own = [[f for f, row in zip(frequencies, table, strict=True) if e in row] for e in range(num_experts)]
    loads = sorted(map(sum, own))
    for given_ids in own:
        last = min((f for f in given_ids if f > 0), default=0)  # the most frequent are given first
        assert sum(given_ids) - last <= loads[top_k - 1]


def test_of_zipfs_law_a_balanced_table_is_more_even_than_a_random_one_and_unseen_ids_even_out_the_rest() -> None:
    frequencies = torch.cat([1000 / torch.arange(1.0, 201.0), torch.zeros(200)])
    balanced = HashRouter(EXPERTS, vocab_size=400, table="balanced", frequencies=frequencies).table
    drawn = HashRouter(EXPERTS, vocab_size=400).table
    loads = [torch.zeros(EXPERTS).index_add(0, table[:, 0], frequencies) for table in (balanced, drawn)]
    assert float(loads[0].std()) < float(loads[1].std())
    ids = torch.bincount(balanced[:, 0], minlength=EXPERTS)
    assert ids.tolist() == [80] * EXPERTS


def test_the_table_is_in_the_checkpoint() -> None:
    router, other = (HashRouter(EXPERTS, 2, vocab_size=VOCAB, seed=seed) for seed in (0, 1))
    assert not torch.equal(router.table, other.table)
    other.load_state_dict(router.state_dict())
    assert torch.equal(router.table, other.table)


def test_one_normalised_gate_is_not_the_default() -> None:
    x, ids = torch.randn(9, DIM), torch.randint(0, VOCAB, (9,))
    one = HashRouter(EXPERTS, 1, **LEARNED)(x, token_ids=ids)
    assert float(one.weight.detach().std()) > 0
    two = HashRouter(EXPERTS, 2, scale=2.5, **LEARNED)(x, token_ids=ids)
    torch.testing.assert_close(two.weights.sum(-1), torch.full((9,), 2.5))


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrt_softplus"])
def test_gradcheck_of_the_gates_in_fp64(score: str) -> None:
    router = HashRouter(4, 2, vocab_size=VOCAB, dim=3, score=score).double()
    ids = torch.randint(0, VOCAB, (6,))

    def gates(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(router, {"weight": weight}, (x,), {"token_ids": ids}).weight

    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gates, (x, router.weight))


def test_the_gates_work_is_its_product() -> None:
    (work,) = HashRouter(EXPERTS, 2, **LEARNED).work(7)
    assert (work.kind, work.needed) == ("router", 7 * DIM * EXPERTS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 0}, "vocab_size=0: it must be positive"),
        ({"top_k": 6}, "top_k=6: it must be between 1 and num_experts=5"),
        ({"table": "modulo"}, "table='modulo': it must be one of 'random', 'balanced'"),
        ({"score": "relu"}, "score='relu': it must be one of"),
        ({"table": "balanced"}, "frequencies=None: it must be given with table='balanced' and only then"),
        ({"frequencies": [1.0] * VOCAB}, "frequencies=.*it must be given with table='balanced' and only then"),
        ({"table": "balanced", "frequencies": [1.0]}, f"frequencies='1 numbers': it must be vocab_size={VOCAB}"),
        ({"table": "balanced", "frequencies": [-1.0] * VOCAB}, "frequencies=.*it must be finite and 0 or more"),
        ({"losses": [RouterZLoss()]}, "losses=.*it must be empty without dim"),
        ({"scale": 0.0}, "scale=0.0: it must be positive"),
        ({"dim": 0}, "dim=0: it must be positive"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HashRouter(EXPERTS, **{"vocab_size": VOCAB, **settings})


def test_without_token_ids_it_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="token_ids=None: it must be the tokens' ids in the vocabulary"):
        HashRouter(EXPERTS, vocab_size=VOCAB)(torch.randn(3, DIM))


def test_one_normalised_gate_warns_that_nothing_is_learned() -> None:
    with pytest.warns(UserWarning, match="normalize=True with top_k=1 makes every gate 1"):
        HashRouter(8, 1, vocab_size=5, dim=4, normalize=True)


def test_ids_of_padding_may_be_any_numbers() -> None:
    router, x, valid = HashRouter(8, 2, vocab_size=5), torch.randn(4, 3), torch.tensor([True, False, True, False])
    assignment = router(x, token_ids=torch.tensor([1, -100, 4, 999]), valid=valid)
    assert (assignment.expert.view(4, 2) >= 0).all(1).tolist() == valid.tolist()
