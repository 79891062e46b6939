"""The plain loop: the same weights again, the steps of a budget, and the loop written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from toolkit.compute import cost
from toolkit.data.synthetic import SparseInduction
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig
from toolkit.training import TrainingConfig, learning_rate_factor
from toolkit.training.task_training import step_flops, train_on_task, with_budget

TASK = SparseInduction(length=12, distance=(2, 11), pairs=2, keys=4, values=4, fillers=1)
BLOCK = BlockConfig(AttentionConfig(heads=2, pattern="Causal() & SlidingWindow(4)"), FeedForwardConfig(hidden_dim=16))
MODEL = DecoderConfig(vocab_size=TASK.vocab_size, dim=8, blocks=(BLOCK,))
CONFIG = TrainingConfig(steps=7, context=12, batch_size=4, learning_rate=1e-2, log_every=3, seed=5)


def fresh(seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(MODEL)


def weights(decoder: Decoder) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in decoder.parameters()])


def test_trained_again_it_is_the_same_bit_for_bit() -> None:
    one, other = fresh(), fresh()
    first = train_on_task(one, TASK, CONFIG)
    torch.manual_seed(99)  # nothing is drawn while it trains
    second = train_on_task(other, TASK, CONFIG)
    assert torch.equal(weights(one), weights(other))
    assert first.loss == second.loss
    assert not torch.equal(weights(one), weights(fresh()))


def test_it_is_adamw_on_the_rows_of_each_step() -> None:
    """By torch's own AdamW and cross-entropy, from rows asked for one at a time."""
    ours, theirs = fresh(), fresh()
    run = train_on_task(ours, TASK, CONFIG)
    matrices = [p for name, p in theirs.named_parameters() if p.ndim == 2 and "embedding" not in name]
    others = [p for name, p in theirs.named_parameters() if p.ndim == 1 or "embedding" in name]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": CONFIG.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(CONFIG.beta1, CONFIG.beta2), eps=CONFIG.eps, foreach=False)
    losses = []
    for step in range(7):
        rows = [TASK.sample(1, seed=5, first_row=4 * step + row) for row in range(4)]
        logits = theirs(torch.cat([row.input_ids for row in rows])).logits[:, -1]
        loss = F.cross_entropy(logits, torch.cat([row.labels for row in rows])[:, -1])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in theirs.parameters() if p.grad is not None]).norm()
        for parameter in theirs.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(min(1.0, CONFIG.gradient_clip / (float(norm) + 1e-6)))
        for group in optimizer.param_groups:
            group["lr"] = CONFIG.learning_rate * learning_rate_factor(step, CONFIG)
        optimizer.step()
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-4, atol=1e-5)
    assert run.loss == pytest.approx(losses[-1], rel=1e-4)  # a tenth of seven steps is the last one


@pytest.mark.parametrize("steps", [0.6, 1.0, 7.4, 7.5001, 123.0])
def test_a_budget_is_met_within_half_a_step(steps: float) -> None:
    price = cost(MODEL, 12).training_flops["exact"] * 12 * 4
    config = with_budget(CONFIG, MODEL, steps * price)
    assert abs(config.steps - steps) <= 0.5
    assert step_flops(MODEL, config) == pytest.approx(price)


def test_what_was_spent_is_counted_exactly() -> None:
    run = train_on_task(fresh(), TASK, CONFIG)
    assert (run.steps, run.tokens) == (7, 7 * 4 * 12)
    assert run.flops == pytest.approx(cost(MODEL, 12).training_flops["exact"] * run.tokens)
    assert run.seconds > 0


def test_it_reports_and_draws_every_few_steps(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    told: list[tuple[int, int]] = []
    with SummaryWriter(str(tmp_path)) as board:
        train_on_task(fresh(), TASK, CONFIG, report=lambda *step: told.append(step), board=board)
    assert told == [(3, 7), (6, 7), (7, 7)]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [3, 6, 7]
    assert [event.step for event in events.Scalars("train/learning_rate")] == [3, 6, 7]


def test_a_budget_below_half_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="flops=.*at least one step's"):
        with_budget(CONFIG, MODEL, 0.4 * step_flops(MODEL, CONFIG))
    with pytest.raises(ValueError, match="flops=0"):
        with_budget(CONFIG, MODEL, 0)


def test_what_does_not_fit_the_task_is_refused() -> None:
    with pytest.raises(ValueError, match="context=12: it must be the task's length=13"):
        train_on_task(fresh(), SparseInduction(13, 2, 2), CONFIG)
    with pytest.raises(ValueError, match="vocab_size=9: it must be at least the task's 10"):
        train_on_task(fresh(), SparseInduction(12, 2, 2, keys=4, values=4, fillers=2), CONFIG)


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    decoder = fresh()
    torch.nn.init.constant_(decoder.embedding.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="step 0"):
        train_on_task(decoder, TASK, CONFIG)
