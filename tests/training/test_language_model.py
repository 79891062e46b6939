"""Bits per byte by brute force, the FLOPs Lightning is told, and what a checkpoint needs to hold."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from training_cases import MODEL, training

from toolkit.compute import cost
from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig
from toolkit.routing import Assignment, BiasBalancer, LoadBalancingLoss
from toolkit.training import LanguageModel, learning_rate_factor, training_loss

SMALL = DecoderConfig(vocab_size=11, dim=16, blocks=(BlockConfig(AttentionConfig(heads=2), FeedForwardConfig(24)),))


def validate(module: LanguageModel, batches: list[Tensor]) -> float:
    """As Lightning does."""
    module.eval()
    module.on_validation_epoch_start()
    with torch.no_grad():
        for index, batch in enumerate(batches):
            module.validation_step(batch, index)
    module.on_validation_epoch_end()
    assert module.bits_per_byte is not None
    return module.bits_per_byte


def by_hand(module: LanguageModel, windows: Tensor, lengths: list[int]) -> float:
    """Bits of all targets over bytes of all targets, token by token in doubles."""
    bits, size = 0.0, 0
    with torch.no_grad():
        probabilities = module.decoder(windows[:, :-1]).logits.double().softmax(-1)
    for row, window in enumerate(windows.tolist()):
        for place, target in enumerate(window[1:]):
            bits -= math.log2(probabilities[row, place, target])
            size += lengths[target]
    return bits / size


@pytest.mark.parametrize("split", [[7], [3, 3, 1], [1, 6]])
def test_bits_per_byte_are_a_quotient_of_sums_whatever_the_batches(split: list[int]) -> None:
    lengths = [1, 2, 5, 1, 3, 8, 1, 1, 2, 4, 6]
    module = LanguageModel(SMALL, training(), torch.tensor(lengths)).eval()
    windows = torch.randint(11, (7, 20))
    assert validate(module, list(windows.split(split))) == pytest.approx(by_hand(module, windows, lengths), rel=1e-6)


def test_a_token_is_a_byte_unless_said_otherwise() -> None:
    module, windows = LanguageModel(SMALL, training()).eval(), torch.randint(11, (4, 20))
    assert validate(module, [windows]) == pytest.approx(by_hand(module, windows, [1] * 11), rel=1e-6)


def test_a_uniform_guess_over_256_bytes_is_8_bits() -> None:
    module = LanguageModel(MODEL, training())
    with torch.no_grad():
        module.decoder.embedding.weight.zero_()  # the head too: every logit is 0
    assert validate(module, [torch.randint(256, (3, 33))]) == pytest.approx(8.0)


def test_each_validation_starts_from_nothing() -> None:
    module, first, second = LanguageModel(SMALL, training()), torch.randint(11, (4, 20)), torch.randint(11, (4, 20))
    alone = validate(module, [second])
    validate(module, [first])
    assert validate(module, [second]) == alone


def test_the_loss_that_is_minimised_and_the_one_that_is_shown() -> None:
    module, windows = LanguageModel(MODEL, training()), torch.randint(256, (4, 33))
    loss = module.training_step(windows, 0)
    expected, nll = training_loss(module.decoder, windows)
    assert torch.equal(loss, expected)
    assert torch.equal(module.last_loss, nll)
    assert loss > nll  # the routers' losses are positive


@pytest.mark.parametrize("world_size", [1, 2])
def test_flops_of_a_batch_are_this_device_s_share(world_size: int) -> None:
    config = training(context=24, batch_size=6)
    module = LanguageModel(MODEL, config)
    module._trainer = SimpleNamespace(world_size=world_size)  # type: ignore[assignment]
    total = cost(MODEL, 24).training_flops["exact"] * 24 * 6
    assert module.flops_per_batch * world_size == pytest.approx(total, abs=1)
    assert module.eval().flops_per_batch * world_size == pytest.approx(total / 3, abs=1)  # forward alone


def test_the_schedule_sets_each_step_s_learning_rate() -> None:
    config = training(steps=10, learning_rate=0.02)
    parts = LanguageModel(SMALL, config).configure_optimizers()
    optimizer, schedule = parts["optimizer"], parts["lr_scheduler"]["scheduler"]
    assert parts["lr_scheduler"]["interval"] == "step"
    for step in range(10):
        rate = pytest.approx(0.02 * learning_rate_factor(step, config))
        assert all(group["lr"] == rate for group in optimizer.param_groups)
        optimizer.step()
        schedule.step()


def test_the_gradient_s_norm_is_clipped() -> None:
    module = LanguageModel(SMALL, training())
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
    norm = torch.cat([gradient.flatten() for gradient in before]).norm()
    optimizer = module.configure_optimizers()["optimizer"]
    module.configure_gradient_clipping(optimizer, 2 * float(norm))
    assert all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), before, strict=True) if p.grad is not None)
    module.configure_gradient_clipping(optimizer, 0.5)
    for parameter, gradient in zip(module.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, gradient * 0.5 / norm)


def test_clipping_by_value_is_refused_rather_than_replaced() -> None:
    module = LanguageModel(SMALL, training())
    with pytest.raises(ValueError, match="gradient_clip_algorithm='value'"):
        module.configure_gradient_clipping(None, 1.0, "value")


def test_byte_lengths_are_no_part_of_the_weights() -> None:
    assert all(name.startswith("decoder.") for name in LanguageModel(SMALL, training()).state_dict())


class Choices:
    """What each MoE's router chose in training forwards, counted straight from its logits and bias."""

    def __init__(self) -> None:
        self.counts: list[torch.Tensor] = []

    def __call__(self, router: torch.nn.Module, inputs: object, assignment: Assignment) -> None:
        biased = assignment.logits.softmax(-1) + router.balancer.bias  # type: ignore[operator, union-attr]
        chosen = biased.detach().topk(2, dim=-1).indices.flatten()
        self.counts.append(torch.bincount(chosen, minlength=4))


def test_biases_move_once_a_step_by_the_counts_of_all_its_micro_batches(tmp_path: Path) -> None:
    module, choices, checkpointed = LanguageModel(MODEL, training()), Choices(), []
    moe = module.decoder.blocks[0].feed_forward
    moe.router.balancer = BiasBalancer(4, 0.01)
    moe.router.register_forward_hook(choices)
    (balance,) = [loss for loss in moe.router.losses if isinstance(loss, LoadBalancingLoss)]

    class AtBatchEnd(lightning.Callback):
        """Where a checkpoint would be written."""

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            checkpointed.append((trainer.global_step, moe.router.balancer.bias.tolist()))

    batches = DataLoader(list(torch.randint(256, (7, 4, 33))), batch_size=None)  # type: ignore[arg-type]
    plain_trainer(AtBatchEnd(), accumulate_grad_batches=3).fit(module, batches)  # steps of 3, 3 and 1 micro-batches
    assert balance.micro_batches == 3
    bias, step = torch.zeros(4), 0
    for number, (global_step, found) in enumerate(checkpointed, start=1):
        if number in (3, 6, 7):
            counts = sum(choices.counts[3 * step : number])
            bias, step = bias + 0.01 * (counts.double().mean() - counts).sign().float(), step + 1
        assert global_step == step
        assert found == pytest.approx(bias.tolist(), abs=1e-7)
    assert bias.any()
    assert balance._tally is not None
    assert not balance._tally.any()  # the short last step's too


def plain_trainer(*callbacks: lightning.Callback, **settings: Any) -> lightning.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=list(callbacks),
        enable_model_summary=False,
        **quiet,  # type: ignore[arg-type]
        **settings,
    )


class Break(lightning.Callback):
    """Makes a router's weight infinite for one micro-batch, and keeps the model's weights as they were before it."""

    def __init__(self, path: str, micro_batch: int) -> None:
        self.path, self.micro_batch = path, micro_batch
        self.before: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.micro_batch:
            self.before = {name: value.clone() for name, value in module.decoder.named_parameters()}
            module.decoder.get_submodule(self.path).weight.data[0] = math.inf

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.micro_batch:
            router = module.decoder.get_submodule(self.path)
            router.weight.data.copy_(self.before[f"{self.path}.weight"])


DEPTH = BlockConfig(AttentionConfig(heads=2), FeedForwardConfig(24), depth_capacity=0.5)


@pytest.mark.parametrize(
    ("layer", "router"),
    [(r"blocks\.2\.feed_forward", "blocks.2.feed_forward.router"), (r"blocks\.1", "blocks.1.router")],
)
def test_logits_that_are_not_finite_stop_the_run_before_the_step_on_them(layer: str, router: str) -> None:
    model = DecoderConfig(vocab_size=256, dim=16, blocks=(MODEL.blocks[0], DEPTH, MODEL.blocks[2]))
    module, broken = LanguageModel(model, training()), Break(router, 2)
    with pytest.raises(ValueError, match=rf"router logits of {layer} at step 3=.* finite"):
        plain_trainer(broken).fit(module, DataLoader(list(torch.randint(256, (5, 4, 33))), batch_size=None))  # type: ignore[arg-type]
    module.decoder.get_submodule(router).weight.data[0] = broken.before[f"{router}.weight"][0]
    assert all(torch.equal(value, broken.before[name]) for name, value in module.decoder.named_parameters())


@pytest.mark.parametrize(("micro_batch", "step"), [(1, 1), (3, 2), (5, 2)])
def test_those_of_any_micro_batch_stop_the_step(micro_batch: int, step: int) -> None:
    module, broken = LanguageModel(MODEL, training()), Break("blocks.0.feed_forward.router", micro_batch)
    batches = DataLoader(list(torch.randint(256, (9, 4, 33))), batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"router logits of blocks\.0\.feed_forward at step {step}="):
        plain_trainer(broken, accumulate_grad_batches=3).fit(module, batches)


def test_those_of_another_process_stop_this_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.training.language_model.all_reduce", lambda counts: counts + torch.tensor([0, 7]))
    batches = DataLoader(list(torch.randint(256, (2, 4, 33))), batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"router logits of blocks\.2\.feed_forward at step 1='7 infinite or NaN'"):
        plain_trainer().fit(LanguageModel(MODEL, training()), batches)


def test_finite_logits_and_models_without_routers_train_on() -> None:
    for model in (MODEL, DecoderConfig(256, 16, (BlockConfig(AttentionConfig(heads=2), FeedForwardConfig(24)),))):
        trainer, batches = plain_trainer(), DataLoader(list(torch.randint(256, (3, 4, 33))), batch_size=None)  # type: ignore[arg-type]
        trainer.fit(LanguageModel(model, training()), batches)
        assert trainer.global_step == 3
