"""One batch's loss against cross-entropy by hand."""

from __future__ import annotations

import pytest
import torch

from toolkit.data import Examples
from toolkit.layers import auxiliary_losses
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.training import next_token_nll, training_loss

DENSE = BlockConfig(AttentionConfig(heads=2), FeedForwardConfig(24))
MOE = BlockConfig(AttentionConfig(heads=2), MoEConfig(8, 4, 2))


def decoder(*blocks: BlockConfig) -> Decoder:
    return Decoder(DecoderConfig(vocab_size=13, dim=16, blocks=blocks)).double()


def by_hand(model: Decoder, windows: torch.Tensor) -> torch.Tensor:
    """-log of the probability of each next token, (batch, context)."""
    logits = model(windows[:, :-1]).logits
    chosen = torch.zeros(logits.shape[:2], dtype=logits.dtype)
    for row in range(len(windows)):
        for place in range(windows.shape[1] - 1):
            scores = logits[row, place].exp()
            chosen[row, place] = -(scores[windows[row, place + 1]] / scores.sum()).log()
    return chosen


def test_each_token_is_predicted_from_those_before_it() -> None:
    model, windows = decoder(DENSE), torch.randint(13, (3, 8))
    expected = by_hand(model, windows)
    torch.testing.assert_close(next_token_nll(model, windows, reduction="none"), expected.flatten())
    torch.testing.assert_close(next_token_nll(model, windows), expected.mean())
    torch.testing.assert_close(next_token_nll(model, windows, reduction="sum"), expected.sum())


def test_the_last_token_is_a_target_only_and_the_first_an_input_only() -> None:
    model, windows = decoder(DENSE), torch.randint(1, 13, (2, 8))
    other_end = windows.clone()
    other_end[:, -1] = 0
    before, after = (next_token_nll(model, x, reduction="none").view(2, 7) for x in (windows, other_end))
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert (before[:, -1] != after[:, -1]).all()


def test_a_dense_model_minimises_the_nll_alone() -> None:
    model, windows = decoder(DENSE), torch.randint(13, (3, 8))
    loss, nll = training_loss(model, windows)
    assert torch.equal(loss, nll)
    assert loss.requires_grad
    assert not nll.requires_grad


def test_a_moe_adds_its_routers_losses_once() -> None:
    model, windows = decoder(MOE, DENSE, MOE), torch.randint(13, (3, 8))
    loss, nll = training_loss(model, windows)
    routers = auxiliary_losses(model)
    assert set(routers) == {"balance", "z"}
    torch.testing.assert_close(loss, by_hand(model, windows).mean() + routers["balance"] + routers["z"])
    torch.testing.assert_close(nll, by_hand(model, windows).mean())
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_loss_is_computed_in_fp32_at_least(dtype: torch.dtype) -> None:
    model, windows = decoder(DENSE).to(dtype), torch.randint(13, (3, 8))
    loss = next_token_nll(model, windows)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    logits = model(windows[:, :-1]).logits.to(loss.dtype).log_softmax(-1)
    torch.testing.assert_close(loss, -logits.gather(2, windows[:, 1:, None]).mean())


def test_of_examples_only_what_is_asked_counts_and_each_row_weighs_the_same() -> None:
    model, windows = decoder(DENSE), torch.randint(13, (3, 8))
    nll = by_hand(model, windows)
    asked = torch.zeros(3, 7, dtype=torch.bool)
    asked[0], asked[1, -1], asked[2, 2:4] = True, True, True
    batch = Examples(windows[:, :-1], windows[:, 1:].masked_fill(~asked, -100))
    expected = torch.stack([nll[row][asked[row]].mean() for row in range(3)]).mean()
    torch.testing.assert_close(next_token_nll(model, batch), expected)
    torch.testing.assert_close(next_token_nll(model, batch, reduction="sum"), nll[asked].sum())
    torch.testing.assert_close(next_token_nll(model, batch, reduction="none"), (nll * asked).flatten())


def test_examples_that_ask_for_every_token_are_windows() -> None:
    model, windows = decoder(DENSE), torch.randint(13, (3, 8))
    batch = Examples(windows[:, :-1], windows[:, 1:])
    torch.testing.assert_close(next_token_nll(model, batch), next_token_nll(model, windows))


def test_a_row_of_which_nothing_is_asked_teaches_nothing() -> None:
    model, ids = decoder(DENSE), torch.randint(13, (1, 8))
    loss = next_token_nll(model, Examples(ids, torch.full((1, 8), -100)))
    loss.backward()
    assert loss == 0
    assert all(parameter.grad is None or (parameter.grad == 0).all() for parameter in model.parameters())
