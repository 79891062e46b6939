"""Packed documents do not see each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pattern_cases import LENGTH, as_on_a_gpu, packed_ids

from toolkit.attention.patterns import Causal, Documents, Pattern
from toolkit.attention.plan import make_plan, plan

IDS = torch.tensor([[0, 0, 5, 5, 5, -1, 2, 2], [7, 7, 7, 7, 7, 7, 7, 7]])


def test_documents_see_themselves_and_padding_nothing() -> None:
    seen = Documents(IDS).mask(8, 8)
    assert seen.shape == (2, 1, 8, 8)
    assert seen[0, 0, 0].tolist() == [True, True] + [False] * 6
    assert not seen[0, 0, 5].any() and not seen[0, 0, :, 5].any()
    assert seen[1].all()
    assert Documents(IDS).area(8, 8) == 4 + 9 + 4 + 64
    assert Documents(IDS[0]).mask(8, 8).shape == (8, 8)


def test_tokens_of_a_document_need_not_be_neighbours() -> None:
    ids = torch.tensor([3, 1, 3, 3, 1, -1, 3])
    pattern = Documents(ids)
    assert pattern.most == 3
    same = (ids[:, None] == ids) & (ids != -1)
    assert torch.equal(pattern.mask(7, 7), same)
    assert pattern.area(7, 7) == int(same.sum())
    assert Documents(ids.sort().values).most == 1


def test_hugging_faces_packed_sequences() -> None:
    from transformers import masking_utils as hf

    theirs = hf.sdpa_mask(
        2,
        8,
        8,
        mask_function=hf.and_masks(hf.causal_mask_function, hf.packed_sequence_mask_function(IDS.abs())),
        allow_is_causal_skip=False,
    )
    assert theirs is not None
    assert torch.equal((Causal() & Documents(IDS.abs())).mask(8, 8), theirs)


def test_attention_gyms_document_mask() -> None:
    gym = pytest.importorskip("attn_gym.masks.document_mask")
    from torch.nn.attention.flex_attention import create_mask

    ids = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    offsets = gym.length_to_offsets([3, 2, 3], "cpu")
    mod = gym.generate_doc_mask_mod(lambda b, h, q, k: q >= k, offsets)
    theirs = create_mask(mod, None, None, 8, 8, device="cpu")[0, 0]
    assert torch.equal((Causal() & Documents(ids)).mask(8, 8), theirs)


def test_from_lengths_pads_to_the_longest_row() -> None:
    assert Documents.from_lengths([[2, 1], [4]]).ids.tolist() == [[0, 0, 1, -1], [0, 0, 0, 0]]


def test_contiguous_documents_take_one_run_a_row() -> None:
    (part,) = plan(Causal() & Documents.from_lengths([[9, 7, 4], [20]]), 20, 20)
    assert part.slots == 1


def test_planned_without_waiting() -> None:
    documents = Documents(packed_ids(2, 0))
    with as_on_a_gpu():
        make_plan(Causal() & documents, LENGTH, LENGTH)


def test_they_print_and_are_equal_to_themselves() -> None:
    one = Documents(IDS)
    assert one == one != Documents(IDS)
    assert len({one, one, ~one, ~one}) == 2
    assert str(~one) == "~Documents(ids=<2x8>)"


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Documents(IDS.float()), r"ids='torch.float32 \(2, 8\)': it must be an integer tensor"),
        (lambda: Documents(IDS[None]), r"\(1, 2, 8\)"),
        (lambda: Documents(IDS[:, :0]), r"\(2, 0\)"),
        (lambda: Documents([[0, 1]]), r"ids=\[\[0, 1\]\]"),  # type: ignore[arg-type]
        (lambda: Documents(IDS - 1), "ids=-2: it must be 0 or more, or -1 for padding"),
        (lambda: Documents(IDS).mask(9, 9), "ids length=8: it must be at least 9, one id a token"),
        (lambda: Documents(IDS).area(2, 4, 7), "ids length=8: it must be at least 9"),
        (lambda: Documents.from_lengths([]), "lengths"),
        (lambda: Documents.from_lengths([[2, 0]]), "lengths"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], Pattern], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()
