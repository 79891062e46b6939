"""Losses and gradients that are not finite: found before the optimizer steps, and traced to a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn
from training_cases import DENSE, MODEL, budget, corpus, training

from toolkit.models import Decoder, DecoderConfig
from toolkit.training import LanguageModel, fit, run
from toolkit.training.health import FiniteLoss, first_bad_layer, last_bad_gradient
from toolkit.training.passes import WholePasses

CONFIG = training(steps=6, log_every=1, checkpoint_minutes=1e-7)
WHOLE = DecoderConfig(256, 16, (DENSE, DENSE, DENSE))


def windows() -> torch.Tensor:
    return torch.randint(256, (2, 17), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer", ["blocks.1.feed_forward", "blocks.0.attention", "embedding"])
def test_the_first_layer_that_makes_it_is_named(layer: str) -> None:
    decoder = Decoder(WHOLE)
    assert first_bad_layer(WholePasses(decoder), [windows()]) == ""
    part = decoder.get_submodule(layer)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.fill_(torch.inf)
    assert first_bad_layer(WholePasses(decoder), [windows()]).startswith(layer)
    assert not any(module._forward_hooks for module in decoder.modules())


def test_the_gradient_that_the_backward_pass_meets_first() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    assert last_bad_gradient(module) == ""
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    module[0].weight.grad[0, 0] = module[1].weight.grad[0, 0] = torch.inf  # type: ignore[index]
    assert last_bad_gradient(module) == "1.weight"


class Spoil(lightning.Callback):
    """At one step makes a gradient infinite, or a weight NaN."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        if self.what == "gradient" and trainer.global_step == 3:
            module.decoder.blocks[1].attention.o_proj.grad[0, 0] = torch.inf

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if self.what == "weight" and trainer.global_step == 3:
            with torch.no_grad():
                next(module.decoder.blocks[2].feed_forward.parameters())[0, 0] = torch.nan


@pytest.mark.parametrize(
    ("what", "where"),
    [
        ("gradient", r"rank 0: loss \d.*, gradient of decoder.blocks.1.attention.o_proj"),
        ("weight", r"rank 0: loss nan, from blocks.2.feed_forward.* on"),
    ],
)
def test_a_run_stops_and_its_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, where: str
) -> None:
    monkeypatch.setattr(run, "throughput", lambda *_: Spoil(what))
    with pytest.raises(FloatingPointError, match=rf"^step 4 is not finite: {where}"):
        fit(WHOLE, CONFIG, corpus(), tmp_path, budget(CONFIG, WHOLE), validation_count=4)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    assert all(bool(torch.isfinite(weight).all()) for weight in saved["state_dict"].values())


def test_a_large_finite_gradient_is_no_fault() -> None:
    """Whose 2-norm would overflow in fp32."""
    module = LanguageModel(MODEL, CONFIG)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 1e30)
    module.last_loss = torch.tensor(1.0)
    FiniteLoss().on_before_optimizer_step(None, module, None)  # type: ignore[arg-type]
