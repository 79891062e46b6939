"""Activations are Hugging Face's own functions of the same names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from toolkit.layers.experts import ACTIVATIONS, Activation


def halves(rows: int, hidden_dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden = 4 * torch.randn(rows, 2 * hidden_dim, dtype=torch.float64)
    return hidden, hidden[:, :hidden_dim], hidden[:, hidden_dim:]


def test_swiglu_is_silu_of_the_first_half_times_the_second() -> None:
    from transformers.activations import ACT2FN

    hidden, gate, up = halves(9, 6)
    torch.testing.assert_close(Activation()(hidden), ACT2FN["silu"](gate) * up, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("name", "theirs"), [("gelu", "gelu"), ("relu2", "relu2")])
def test_plain_activations_are_hugging_faces(name: str, theirs: str) -> None:
    from transformers.activations import ACT2FN

    hidden = 4 * torch.randn(9, 6, dtype=torch.float64)
    torch.testing.assert_close(Activation(name)(hidden), ACT2FN[theirs](hidden), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("alpha", "limit"), [(1.702, 7.0), (0.9, 1.5)])
def test_clamped_swiglu_is_gpt_oss(alpha: float, limit: float) -> None:
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    config = GptOssConfig(hidden_size=4, intermediate_size=6, num_local_experts=1)
    theirs = GptOssExperts(config)
    theirs.alpha, theirs.limit = alpha, limit
    hidden, gate, up = halves(50, 6)
    hidden *= 3  # beyond 7 too
    assert (hidden.abs() > limit).any()
    interleaved = torch.stack([gate, up], dim=-1).flatten(1)
    ours = Activation("clamped_swiglu", alpha=alpha, limit=limit)(hidden)
    torch.testing.assert_close(ours, theirs._apply_gate(interleaved), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_it_takes_its_width_and_gives_hidden_dim(name: str) -> None:
    activation = Activation(name)
    assert activation(torch.randn(3, activation.width(5))).shape == (3, 5)
    assert activation.width(5) == (10 if activation.gated else 5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"name": "swish"}, "activation='swish'.*'swiglu', 'clamped_swiglu', 'gelu', 'relu2'"),
        ({"name": "clamped_swiglu", "limit": 0.0}, "limit=0.0"),
        ({"name": "clamped_swiglu", "alpha": -1.0}, "alpha=-1.0"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Activation(**settings)
