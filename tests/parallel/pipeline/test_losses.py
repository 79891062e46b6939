"""Losses that ride on an output have their own gradient, whatever the output's is."""

from __future__ import annotations

import pytest
import torch
from pipeline_work import KINDS, LENGTH, VOCAB_SIZE, decoder

from toolkit.layers import auxiliary_losses
from toolkit.models import Decoder
from toolkit.parallel.pipeline import carry_loss, count_losses
from toolkit.parallel.pipeline.losses import own_losses


@pytest.mark.parametrize("scale", [0.0, 1.0, -7.0])
def test_a_loss_that_is_carried_has_its_weight_as_gradient(scale: float) -> None:
    x, w = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.randn(2, requires_grad=True)
    y = carry_loss(2 * x, (w**2).sum(), weight=0.25)
    assert torch.equal(y, 2 * x)
    y.backward(torch.full_like(y, scale))
    assert torch.equal(x.grad, torch.full_like(x, 2 * scale))  # type: ignore[arg-type]
    torch.testing.assert_close(w.grad, 0.25 * 2 * w)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_counted_as_a_forward_finds_them_and_stages_add_up_to_the_whole(kind: str) -> None:
    model = Decoder(decoder(kind))
    counted = count_losses(model)
    model(torch.randint(VOCAB_SIZE, (2, LENGTH)))
    whole = auxiliary_losses(model)
    assert counted.keys() == whole.keys()
    parts = [own_losses(block, counted, count_losses(block)) for block in model.blocks]
    for name, loss in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts if name in part), loss)


def test_losses_that_were_not_counted_are_refused() -> None:
    model = Decoder(decoder("moe"))
    model(torch.zeros(1, LENGTH, dtype=torch.int64))
    with pytest.raises(RuntimeError, match=r"by name are .*'z': 3.*counted to have \{'balance': 1\}"):
        own_losses(model, {"balance": 1}, {"balance": 1})
