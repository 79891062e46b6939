"""SwiGLU against its equation and Hugging Face's, and its cost and start."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toolkit.layers import SwiGLU


def test_it_is_down_of_silu_gate_times_up_with_the_gates_rows_first() -> None:
    layer = SwiGLU(6, 10).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    gate, up = layer.gate_up_proj[:10], layer.gate_up_proj[10:]
    expected = (x @ gate.T * torch.sigmoid(x @ gate.T) * (x @ up.T)) @ layer.down_proj.T
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-14)


def test_it_is_hugging_faces_llama_mlp() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    layer = SwiGLU(16, 24)
    theirs = LlamaMLP(LlamaConfig(hidden_size=16, intermediate_size=24, num_attention_heads=2))
    gate, up = layer.gate_up_proj.detach().chunk(2)
    theirs.load_state_dict(
        {"gate_proj.weight": gate, "up_proj.weight": up, "down_proj.weight": layer.down_proj.detach()}
    )
    x = torch.randn(3, 5, 16)
    torch.testing.assert_close(layer(x), theirs(x))


def test_every_token_is_on_its_own_and_the_leading_shape_is_kept() -> None:
    layer = SwiGLU(6, 10)
    x = torch.randn(2, 3, 4, 6)
    y = layer(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y[1, 2, 3], layer(x[1, 2, 3]))


def test_gradcheck() -> None:
    layer = SwiGLU(3, 4).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
        weights = {"gate_up_proj": gate_up_proj, "down_proj": down_proj}
        out: Tensor = torch.func.functional_call(layer, weights, (x,))
        return out

    assert torch.autograd.gradcheck(call, (x, layer.gate_up_proj, layer.down_proj))


def test_weights_start_at_fan_in_to_the_minus_one_half_without_biases() -> None:
    layer = SwiGLU(256, 400)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "gate_up_proj": (800, 256),
        "down_proj": (256, 400),
    }
    assert float(layer.gate_up_proj.detach().std()) == pytest.approx(256**-0.5, rel=0.02)
    assert float(layer.down_proj.detach().std()) == pytest.approx(400**-0.5, rel=0.02)


def test_its_work_is_three_products_a_token() -> None:
    (work,) = SwiGLU(6, 10).work(7)
    assert work.kind == "feed_forward"
    assert work.needed == work.square == work.computed == 7 * 3 * 6 * 10


@pytest.mark.parametrize(("dim", "hidden_dim", "named"), [(0, 4, "dim=0"), (4, 0, "hidden_dim=0")])
def test_bad_sizes_are_named(dim: int, hidden_dim: int, named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named}"):
        SwiGLU(dim, hidden_dim)
