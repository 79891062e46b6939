"""Mixture-of-depths against a layer that computes every token and hides those that were not chosen."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from toolkit.attention import Causal, Documents, Full, KeyValueCache, Pattern, RollingCache, SlidingWindow
from toolkit.attention.selection import MoBA
from toolkit.layers import (
    Block,
    MixtureOfDepths,
    MoE,
    RotaryEmbedding,
    SelfAttention,
    Sequences,
    SwiGLU,
    auxiliary_losses,
)
from toolkit.routing import HashRouter

DIM = 8
KINDS = ["dense", "moe"]


def build_block(kind: str = "dense", pattern: Pattern | None = None) -> Block:
    feed_forward: nn.Module = SwiGLU(DIM, 12) if kind == "dense" else MoE(DIM, 12, 4, 2)
    return Block(DIM, SelfAttention(DIM, 2, pattern=pattern, rope=RotaryEmbedding(4)), feed_forward)


def build(
    kind: str = "dense", capacity: float = 0.4, pattern: Pattern | None = None, shift: float = 0.3
) -> MixtureOfDepths:
    """In fp64; in evaluation the predictor names about half of the tokens, different numbers in each row."""
    layer = MixtureOfDepths(build_block(kind, pattern), DIM, capacity).double()
    with torch.no_grad():
        layer.router.predictor_down.mul_(3)
        layer.router.predictor_down_bias.fill_(shift)
    return layer


def tokens(batch: int = 4, length: int = 13) -> Tensor:
    return torch.randn(batch, length, DIM, dtype=torch.float64)


def definition(layer: MixtureOfDepths, x: Tensor) -> tuple[Tensor, Block]:
    """Every token goes through a copy of the block that hides the keys which were not chosen; and that copy."""
    selected = layer.choice.selected
    block = copy.deepcopy(layer.block)
    block.attention.core.pattern = block.attention.pattern & Documents(selected.long() - 1)
    r = x @ layer.router.weight[0]
    return torch.where(selected[..., None], x + r[..., None] * (block(x) - x), x), block


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_it_is_equation_1_over_the_chosen_tokens_at_their_own_positions(kind: str, training: bool) -> None:
    layer, x = build(kind).train(training), tokens()
    y = layer(x)
    counts = layer.choice.selected.sum(1).tolist()
    assert 0 < sum(counts) < x.shape[0] * x.shape[1]
    assert (len(set(counts)) == 1) == training  # rows differ in evaluation
    torch.testing.assert_close(y, definition(layer, x)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_the_input_and_every_weight_get_the_definitions_gradient(training: bool) -> None:
    layer, x = build().train(training), tokens().requires_grad_()
    wanted = [x, layer.router.weight, *layer.block.parameters()]
    out = torch.randn(x.shape, dtype=torch.float64)
    mine = torch.autograd.grad((layer(x) * out).sum(), wanted)
    other = copy.deepcopy(layer)
    other._choice = layer.choice
    y, hidden = definition(other, x)
    theirs = torch.autograd.grad((y * out).sum(), [x, other.router.weight, *hidden.parameters()])
    for one, two in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-11)
        assert (one != 0).any()


def test_the_gradient_of_a_training_forward_is_its_difference_quotient() -> None:
    layer, x = build(), tokens(2, 6).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_tokens_and_r_one_it_is_the_plain_block(kind: str) -> None:
    layer, x = build(kind, capacity=1.0), tokens()
    x[..., 0] = 1.0
    with torch.no_grad():
        layer.router.weight.copy_(torch.eye(1, DIM))
    assert torch.equal(layer(x), layer.block(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_tokens_that_are_not_chosen_are_left_bit_for_bit(dtype: torch.dtype, training: bool) -> None:
    layer, x = build("moe").to(dtype).train(training), tokens().to(dtype)
    y, selected = layer(x), layer.choice.selected
    assert (~selected).any()
    assert torch.equal(y[~selected], x[~selected])
    assert (y[selected] != x[selected]).any(-1).all()


def test_where_nothing_is_chosen_nothing_happens() -> None:
    layer, x, cache = build(shift=-100.0).eval(), tokens(1), KeyValueCache()
    assert torch.equal(layer(x), x)
    assert torch.equal(layer(x, cache), x)
    assert cache.length(0) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_does_not_read_the_future(kind: str) -> None:
    layer, x = build(kind).eval(), tokens()
    y = layer(x)
    for cut in (1, 5, 12):
        changed = torch.cat([x[:, :cut], 3 * tokens()[:, cut:]], dim=1)
        torch.testing.assert_close(layer(changed)[:, :cut], y[:, :cut], rtol=0, atol=1e-12)
        torch.testing.assert_close(layer(x[:, :cut]), y[:, :cut], rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_of_no_rows_stays_one(training: bool) -> None:
    layer = build().train(training)
    assert layer(tokens(batch=0)).shape == (0, 13, DIM)


def test_rows_of_a_batch_do_not_meet_in_evaluation() -> None:
    layer, x = build("moe").eval(), tokens()
    alone = torch.cat([layer(row[None]) for row in x])
    torch.testing.assert_close(layer(x), alone, rtol=0, atol=1e-12)


def test_padding_is_in_no_statistic_of_the_experts() -> None:
    layer, x = build("moe").eval(), tokens()
    layer(x)
    assert isinstance(layer.feed_forward, MoE)
    assert layer.choice.valid is not None
    assert float(layer.feed_forward.stats.tokens) == int(layer.choice.selected.sum())


@pytest.mark.parametrize("training", [True, False])
def test_a_router_that_hashes_tokens_gets_the_ids_of_the_chosen_ones(training: bool) -> None:
    layer, x, ids = build().train(training), tokens(), torch.randint(50, (4, 13))
    layer.block.feed_forward = MoE(DIM, 12, 4, 1, router=HashRouter(4, vocab_size=50, dim=DIM)).double()
    y, selected = layer(x, sequences=Sequences(ids)), layer.choice.selected
    hidden = copy.deepcopy(layer.block)
    hidden.attention.core.pattern = Causal() & Documents(selected.long() - 1)
    update = hidden(x, sequences=Sequences(ids)) - x
    expected = x + (x @ layer.router.weight[0])[..., None] * update
    torch.testing.assert_close(y[selected], expected[selected], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunks", [[1] * 13, [7, 1, 5], [4, 4, 4, 1]])
def test_over_a_cache_it_gives_the_same(kind: str, chunks: list[int]) -> None:
    layer, x, cache = build(kind).eval(), tokens(1), KeyValueCache()
    parts = [layer(part, cache, 3) for part in x.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), layer(x), rtol=0, atol=1e-12)
    assert cache.length(3) == int(layer.choice.selected.sum())  # the others never enter it
    assert 0 < cache.length(3) < 13


def test_a_window_and_the_cache_for_it_count_chosen_tokens() -> None:
    layer, x, cache = build(pattern=Causal() & SlidingWindow(2)).eval(), tokens(1, 40), RollingCache(2)
    with torch.no_grad():
        parts = [layer(part, cache) for part in x.split(1, dim=1)]
        y = layer(x)
    torch.testing.assert_close(torch.cat(parts, dim=1), y, rtol=0, atol=1e-12)
    index = layer.choice.index[0]
    few = x[:, index[-2:]]  # the last chosen token sees itself and the chosen one before, wherever that stands
    update = layer.block(few, sequences=Sequences(positions=index[None, -2:])) - few
    last = few + (few @ layer.router.weight[0])[..., None] * update
    torch.testing.assert_close(y[0, index[-1]], last[0, -1], rtol=0, atol=1e-12)


def test_rotary_positions_are_those_of_the_whole_sequence() -> None:
    # Rotary scores know differences of positions only: moving all tokens changes nothing, spreading them does.
    block, x = build_block().double(), tokens(2, 5)
    at = torch.tensor([[0, 3, 4, 9, 11], [2, 3, 5, 7, 8]])
    y = block(x, sequences=Sequences(positions=at))
    moved, plain = Sequences(positions=at + 7), Sequences(positions=torch.arange(5).expand(2, 5))
    torch.testing.assert_close(block(x, sequences=moved), y, rtol=0, atol=1e-6)  # angles are fp32
    torch.testing.assert_close(block(x, sequences=plain), block(x), rtol=0, atol=1e-12)
    assert (block(x, sequences=Sequences(positions=2 * at)) - y)[:, 1:].abs().amax() > 1e-3


def test_the_router_learns_through_r_and_the_predictor_from_its_own_loss() -> None:
    layer, x = build(), tokens().requires_grad_()
    y = layer(x)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    by_task = dict(zip(names, torch.autograd.grad(y.square().sum(), parameters, None, True, False, True), strict=True))
    for name, gradient in by_task.items():
        reached = gradient is not None and bool((gradient != 0).any())
        assert reached == ("predictor" not in name), name
    (loss,) = auxiliary_losses(layer).values()
    by_loss = torch.autograd.grad(loss, [x, *parameters], allow_unused=True)
    for name, gradient in zip(["x", *names], by_loss, strict=True):
        reached = gradient is not None and bool((gradient != 0).any())
        assert reached == ("predictor" in name), name


def test_auxiliary_losses_are_means_over_the_layers_and_none_in_evaluation() -> None:
    model = nn.ModuleList([build(), build("moe")])
    for layer in model:
        layer(tokens())
    found = auxiliary_losses(model)
    assert set(found) == {"depth", "balance", "z"}
    torch.testing.assert_close(found["depth"], sum(layer.losses["depth"] for layer in model) / 2)
    for layer in model.eval():
        layer(tokens())
    assert auxiliary_losses(model) == {}


def test_the_loss_s_gradient_enters_the_layer_with_the_output_s() -> None:
    layer, order = build(), []
    y = layer(tokens())
    y.register_hook(lambda gradient: order.append("output"))
    layer.router.predictor_up.register_hook(lambda gradient: order.append("predictor"))
    (y.sum() + layer.losses["depth"]).backward()
    assert order == ["output", "predictor"]
    assert layer.losses["depth"].grad_fn is y.grad_fn


def test_a_loss_without_a_graph_is_refused() -> None:
    layer = build()
    with torch.no_grad():
        layer(tokens())
    with pytest.raises(RuntimeError, match="depth loss of the model was computed without a graph"):
        auxiliary_losses(layer)


@pytest.mark.parametrize("training", [True, False])
def test_statistics_are_shares_of_the_tokens(training: bool) -> None:
    layer, x = build(capacity=0.3).train(training), tokens(3, 20)
    layer(x)
    r, named = x @ layer.router.weight[0], layer.choice.prediction > 0
    best = torch.stack([row >= row.sort(descending=True).values[5] for row in r])
    stats = layer.stats
    assert stats.selected == pytest.approx(0.3 if training else float(named.double().mean()))
    assert stats.predicted == pytest.approx(float(named.double().mean()))
    assert stats.accuracy == pytest.approx(float((named == best).double().mean()))


def test_it_can_be_copied_and_pickled_after_a_forward() -> None:
    layer, x = build("moe"), tokens()
    y = layer(x)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        with pytest.raises(ValueError, match="choice: this layer has not run yet"):
            _ = again.choice
        assert again.losses == {}
        assert torch.equal(again(x), y)


@pytest.mark.parametrize("kind", KINDS)
def test_training_compiles_to_one_graph_of_fixed_shapes(kind: str) -> None:
    layer, x = build(kind), tokens()
    y = layer(x)  # before compiling: the balance loss makes its buffers in the first forward
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), y, rtol=0, atol=1e-12)
    with torch.compiler.set_stance("fail_on_recompile"):  # other tokens are chosen, the graph is the same
        assert (compiled(tokens()) != x).any()
    torch._dynamo.reset()


def test_autocast_runs_the_block_in_bf16_around_an_fp32_stream() -> None:
    layer, x = build("moe").float(), tokens().float()
    plain = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.float32
    assert torch.equal((low != x).any(-1), (plain != x).any(-1))
    torch.testing.assert_close(low, plain, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("pattern", [Full(), SlidingWindow(3)])
def test_a_pattern_that_looks_ahead_is_refused(pattern: Pattern) -> None:
    with pytest.raises(ValueError, match=r"^block.attention.pattern=.*: it must be causal"):
        MixtureOfDepths(build_block(pattern=pattern), DIM)


def test_a_pattern_with_a_tensor_is_refused() -> None:
    pattern = Causal() & Documents(torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="without tensors"):
        MixtureOfDepths(build_block(pattern=pattern), DIM)


def test_what_a_cache_cannot_do_is_refused() -> None:
    layer = build()
    with pytest.raises(ValueError, match=r"None in training mode.*eval"):
        layer(tokens(1), KeyValueCache())
    with pytest.raises(ValueError, match=r"^x.shape\[0\]=2: it must be 1 with a cache"):
        layer.eval()(tokens(2), KeyValueCache())


def test_work_by_hand() -> None:
    layer = MixtureOfDepths(build_block(), DIM, capacity=0.25, predictor_dim=3)
    products = dict.fromkeys(("router", "attention", "scores", "feed_forward"), 0)
    for part in layer.work(20):
        products[part.kind] += part.needed
    assert products == {
        "router": 20 * (DIM + 3 * DIM + 3),
        "attention": 5 * 4 * DIM * DIM,
        "scores": 2 * (5 * 6 // 2) * DIM,
        "feed_forward": 5 * 3 * 12 * DIM,
    }


def test_a_moe_that_no_token_reached_shows_nothing_of_an_earlier_forward() -> None:
    moe = MoE(16, 12, 4, 2)
    layer = MixtureOfDepths(Block(16, SelfAttention(16, 2), moe), 16, capacity=0.5)
    layer(torch.randn(2, 8, 16))
    assert moe.has_run and set(auxiliary_losses(layer)) == {"balance", "z", "depth"}
    with torch.no_grad():
        layer.router.predictor_down_bias.fill_(-1e4)
    layer.eval()(torch.randn(2, 8, 16))
    assert not moe.has_run and auxiliary_losses(layer) == {}


def test_the_predictors_loss_over_no_token_is_zero() -> None:
    layer = MixtureOfDepths(Block(16, SelfAttention(16, 2), SwiGLU(16, 12)), 16)
    layer(torch.zeros(2, 0, 16))
    assert float(layer.losses["depth"]) == 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("left", [[0, 0, 0], [4, 1, 2]], ids=["right", "either side"])
def test_padding_is_never_chosen_and_not_counted(kind: str, training: bool, left: list[int]) -> None:
    layer, rows, lengths = build(kind).train(training), tokens(3, 13), [13, 6, 9]
    x, valid = 5 * tokens(3, 17), torch.zeros(3, 17, dtype=torch.bool)
    for n, (start, length) in enumerate(zip(left, lengths, strict=True)):
        x[n, start : start + length], valid[n, start : start + length] = rows[n, :length], True
    y = layer(x, sequences=Sequences.of(valid=valid))
    choice, stats, losses = layer.choice, layer.stats, layer.losses
    assert torch.equal(y[~valid], x[~valid])
    assert not choice.selected[~valid].any()
    expected, counts, agreed, weighed = [], [], 0.0, 0.0
    for row, length in zip(rows, lengths, strict=True):
        expected.append(layer(row[None, :length])[0])
        counts.append(int(layer.choice.selected.sum()))
        agreed += layer.stats.accuracy * length
        weighed += float(layer.losses["depth"].detach()) * length if training else 0.0
    torch.testing.assert_close(y[valid], torch.cat(expected), rtol=0, atol=1e-12)
    assert choice.selected.sum(1).tolist() == counts
    assert counts == [6, 3, 4] or not training  # 0.4 of 13, 6 and 9, rounded up
    assert stats.selected == pytest.approx(sum(counts) / sum(lengths))
    assert stats.accuracy == pytest.approx(agreed / sum(lengths))
    if training:
        assert float(losses["depth"].detach()) == pytest.approx(weighed / sum(lengths))


def test_a_row_of_padding_only_passes_by() -> None:
    layer, x = build("moe"), tokens(2, 5)
    valid = torch.tensor([[False] * 5, [True] * 5])
    y = layer(x, sequences=Sequences.of(valid=valid))
    assert torch.equal(y[0], x[0])
    torch.testing.assert_close(y[1:], layer(x[1:]), rtol=0, atol=1e-12)
    assert torch.equal(layer(x, sequences=Sequences.of(valid=torch.zeros_like(valid))), x)
    assert float(layer.losses["depth"].detach()) == 0.0


def test_keys_chosen_by_content_take_a_padded_batch_of_which_padding_is_never_chosen() -> None:
    layer, rows = build(), tokens(2, 7)
    layer.block.attention = SelfAttention(DIM, 2, pattern=MoBA(block=2, top_k=1), rope=RotaryEmbedding(4)).double()
    x, valid = torch.cat([tokens(2, 3), rows], dim=1), torch.arange(10).expand(2, 10) >= 3
    torch.testing.assert_close(layer(x, sequences=Sequences.of(valid=valid))[:, 3:], layer(rows), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="^sequence_ids=.*None with MoBA"):
        layer(x, sequences=Sequences.of(sequence_ids=valid.long()))


def test_it_refuses_documents_beside_a_cache_before_the_cache_is_changed() -> None:
    layer, cache = build().eval(), KeyValueCache()
    for name, table in (("valid", torch.ones(1, 5) > 0), ("sequence_ids", torch.zeros(1, 5).long())):
        with pytest.raises(ValueError, match=f"^{name}=.*None with a cache"):
            layer(tokens(1, 5), cache, sequences=Sequences.of(**{name: table}))
    assert cache.length(~0) == 0


def test_equal_tokens_tie_and_the_earlier_goes_packed_or_not() -> None:
    """In a first layer r depends on the token alone, so that text ties everywhere."""
    layer = build(capacity=0.25)
    x = torch.randn(3, DIM, dtype=torch.float64)[torch.randint(3, (1, 40))]
    layer(x)
    alone = layer.choice.selected
    layer(x, sequences=Sequences.of(sequence_ids=torch.zeros(1, 40, dtype=torch.long)))
    assert torch.equal(layer.choice.selected, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_padding_runs_the_layer_for_nothing(kind: str) -> None:
    """So that a process whose rows are all padding takes part in what the others wait for."""
    layer, x = build(kind), tokens(2, 5)
    y = layer(x, sequences=Sequences.of(valid=torch.zeros(2, 5, dtype=torch.bool)))
    assert torch.equal(y, x)
    (y.sum() + sum(layer.losses.values())).backward()
    assert all(parameter.grad is not None for parameter in layer.block.parameters() if parameter.requires_grad)
    assert all(not parameter.grad.any() for parameter in layer.block.parameters())
