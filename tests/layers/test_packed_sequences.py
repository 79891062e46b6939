"""What layers are told of padding and packed documents, against counting by hand, and attention that listens to it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toolkit.attention import Causal, Full, GlobalTokens, KeyValueCache, Pattern, Sinks, SlidingWindow
from toolkit.attention.selection import MoBA
from toolkit.layers import Block, MoE, RotaryEmbedding, SelfAttention, Sequences, SwiGLU

IDS = torch.tensor([[-1, 4, 4, 0, 0, 0, -1, 9], [9, 9, 2, -1, -1, 0, 0, 0]])


def spans(ids: Tensor) -> list[tuple[int, slice]]:
    """(row, tokens) of each document, row by row."""
    found = []
    for row, own in enumerate(ids.tolist()):
        names = list(dict.fromkeys(name for name in own if name >= 0))
        found += [(row, slice(own.index(name), own.index(name) + own.count(name))) for name in names]
    return found


def test_positions_restart_and_numbers_are_those_of_no_other_document() -> None:
    told = Sequences.of(sequence_ids=IDS)
    assert told.valid is not None and told.positions is not None and told.sequence_ids is not None
    assert torch.equal(told.valid, IDS >= 0)
    numbers = []
    for row, where in spans(IDS):
        length = where.stop - where.start
        assert told.positions[row, where].tolist() == list(range(length))
        (number,) = set(told.sequence_ids[row, where].tolist())
        assert int((told.sequence_ids == number).sum()) == length
        numbers.append(number)
    assert numbers == sorted(set(numbers))
    flat = told.sequence_ids.flatten()
    assert flat[0] == 0 and set(flat.diff().tolist()) <= {0, 1} and flat[-1] < len(flat)


def test_a_padded_row_is_one_document_that_starts_at_its_first_token() -> None:
    valid = torch.tensor([[False, False, True, True], [True, True, True, False]])
    told = Sequences.of(torch.tensor([[7, 7, 1, 2], [3, 4, 5, 7]]), valid=valid)
    assert told.sequence_ids is None and told.documents is not None
    assert told.positions is not None and told.positions[valid].tolist() == [0, 1, 0, 1, 2]
    assert told.token_ids is not None and told.token_ids.tolist() == [[0, 0, 1, 2], [3, 4, 5, 0]]
    assert told.documents.ids.tolist() == [[-1, -1, 0, 0], [0, 0, 0, -1]]


def test_padding_is_what_either_of_the_two_names() -> None:
    valid = torch.ones_like(IDS, dtype=torch.bool)
    valid[0, 1] = valid[1, 7] = False
    told = Sequences.of(valid=valid, sequence_ids=IDS)
    assert torch.equal(told.valid, valid & (IDS >= 0))


def test_with_nothing_given_nothing_is_told() -> None:
    ids = torch.zeros(2, 3, dtype=torch.long)
    told = Sequences.of(ids)
    assert told.token_ids is ids
    assert (told.valid, told.sequence_ids, told.positions, told.documents) == (None, None, None, None)


@pytest.mark.parametrize("rope", [None, RotaryEmbedding(4)])
@pytest.mark.parametrize(
    "pattern",
    [Causal(), Full(), SlidingWindow(2), Causal() & (SlidingWindow(2) | Sinks(1)), Causal() & GlobalTokens(1)],
)
def test_attention_gives_each_document_what_it_gives_it_alone(pattern: Pattern, rope: RotaryEmbedding | None) -> None:
    layer = SelfAttention(8, 4, 2, 4, pattern, rope, qk_norm=True, softcap=3.0).double()
    x, told = torch.randn(2, 8, 8, dtype=torch.float64), Sequences.of(sequence_ids=IDS)
    y = layer(x, sequences=told)
    for row, where in spans(IDS):
        torch.testing.assert_close(y[row, where], layer(x[row : row + 1, where])[0], rtol=0, atol=1e-12)
    assert (y[IDS < 0] == 0).all()


@pytest.mark.parametrize("feed_forward", [SwiGLU(8, 12), MoE(8, 12, 4, 2)], ids=["dense", "moe"])
def test_a_block_reads_nothing_of_padding_and_sends_it_no_gradient(feed_forward: torch.nn.Module) -> None:
    block = Block(8, SelfAttention(8, 2, rope=RotaryEmbedding(4)), feed_forward).double()
    told, real = Sequences.of(sequence_ids=IDS), IDS >= 0
    x = torch.randn(2, 8, 8, dtype=torch.float64)
    other = torch.where(real[..., None], x, 3 * torch.randn_like(x)).requires_grad_()
    y = block(other, sequences=told)
    torch.testing.assert_close(y[real], block(x, sequences=told)[real], rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(y[real].square().sum(), other)
    assert (gradient[~real] == 0).all() and (gradient[real] != 0).any(-1).all()


def test_a_change_of_the_ids_after_a_forward_is_heard_by_the_next() -> None:
    layer, x, ids = SelfAttention(8, 2).double(), torch.randn(1, 4, 8, dtype=torch.float64), torch.zeros(1, 4).long()
    whole = layer(x, sequences=Sequences.of(sequence_ids=ids))
    ids[0, 2:] = 1
    halves = layer(x, sequences=Sequences.of(sequence_ids=ids))
    torch.testing.assert_close(whole, layer(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(halves, torch.cat([layer(x[:, :2]), layer(x[:, 2:])], dim=1), rtol=0, atol=1e-12)


def test_those_of_the_tokens_that_a_layer_picks() -> None:
    told = Sequences.of(torch.arange(16).view(2, 8), sequence_ids=IDS)
    index, valid = torch.tensor([[2, 4, 7], [0, 5, 3]]), torch.tensor([[True] * 3, [True, True, False]])
    few = told.at(index, valid)
    assert few.token_ids is not None and few.token_ids.tolist() == [[2, 4, 7], [8, 13, 0]]
    assert few.positions is not None and few.positions[valid].tolist() == [1, 1, 0, 0, 0]
    assert few.documents is not None and (few.documents.ids >= 0).tolist() == valid.tolist()
    alone = Sequences(torch.arange(16).view(2, 8)).at(index, valid, start=5)
    assert alone.documents is None and alone.sequence_ids is None
    assert alone.positions is not None and torch.equal(alone.positions, index + 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sequence_ids": IDS[0]}, r"^sequence_ids.shape=\(8,\): it must be \(batch, length\)"),
        ({"sequence_ids": IDS.double()}, "^sequence_ids.dtype=torch.float64: it must be torch.int64"),
        ({"valid": IDS >= 0, "sequence_ids": IDS[:, :5]}, r"^sequence_ids.shape=\(2, 5\): .*\(2, 8\)"),
        ({"valid": IDS}, "^valid.dtype=torch.int64: it must be torch.bool"),
        ({"sequence_ids": IDS - 1}, "^sequence_ids=-2: it must be 0 or more, or -1"),
        ({"valid": torch.tensor([[True, False, True]])}, "^valid: stretches .*=2: it must be 1"),
        ({"sequence_ids": torch.tensor([[3, 1, 3]])}, "^sequence_ids: stretches .*=2: it must be 1"),
    ],
)
def test_what_is_no_table_of_documents_is_refused(given: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sequences.of(**given)


def test_attention_refuses_what_it_cannot_do() -> None:
    x, told = torch.randn(2, 8, 8), Sequences.of(sequence_ids=IDS)
    with pytest.raises(ValueError, match=r"^valid.shape=\(2, 8\): it must be x's \(batch, length\) = \(2, 7\)"):
        SelfAttention(8, 2)(x[:, 1:], sequences=Sequences(valid=IDS >= 0))
    cache = KeyValueCache()
    with pytest.raises(ValueError, match="^sequence_ids=.*None with a cache"):
        SelfAttention(8, 2)(x, cache, sequences=told)
    assert cache.length() == 0
    with pytest.raises(ValueError, match="^sequence_ids=.*None with MoBA"):
        SelfAttention(8, 2, pattern=MoBA(block=2, top_k=1))(x, sequences=told)
    own = SelfAttention(8, 2, pattern=Causal() & GlobalTokens(1), global_projections=True)
    with pytest.raises(ValueError, match="^sequence_ids=.*None with global_projections"):
        own(x, sequences=told)
    with pytest.raises(ValueError, match="^positions=.*None with global_projections"):
        own(x, sequences=Sequences(positions=torch.arange(8).expand(2, 8)))


def test_a_batch_of_nothing_has_no_documents() -> None:
    sequences = Sequences.of(valid=torch.ones(0, 8, dtype=torch.bool))
    assert sequences.documents is None
    assert sequences.valid is None
