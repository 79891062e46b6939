"""Logits that are no numbers are an error that says where and when."""

from __future__ import annotations

import pickle

import pytest
import torch

from toolkit.routing import require_finite_logits
from toolkit.routing.finite import DivergedError


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_the_error_names_layer_step_and_how_many(bad: float) -> None:
    logits = torch.randn(4, 3)
    logits[2, :2] = bad
    with pytest.raises(
        DivergedError, match="router logits of blocks.3.feed_forward at step 120='2 infinite or NaN': it must be finite"
    ) as refusal:
        require_finite_logits(logits, "blocks.3.feed_forward", 120)
    assert isinstance(refusal.value, ValueError)
    assert refusal.value.step == 120


def test_the_step_survives_the_way_from_one_process_to_another() -> None:
    error = pickle.loads(pickle.dumps(DivergedError("router logits", 7)))
    assert (str(error), error.step) == ("router logits", 7)


def test_finite_logits_and_padding_pass() -> None:
    logits = torch.full((3, 2), 3e38)
    require_finite_logits(logits, "layer", 1)
    logits[1] = torch.nan
    require_finite_logits(logits, "layer", 1, valid=torch.tensor([True, False, True]))
    require_finite_logits(logits[:0], "layer", 1)
