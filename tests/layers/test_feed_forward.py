"""The dense layer against its equation and Hugging Face's, and its cost and start."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from toolkit.layers import Activation, FeedForward, SwiGLU
from toolkit.layers.experts import ACTIVATIONS


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


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_two_linear_layers_around_its_activation(name: str, bias: bool) -> None:
    activation = Activation(name)
    layer = FeedForward(6, 10, activation, bias).double()
    first = "gate_up_proj" if activation.gated else "up_proj"
    biases = {f"{first}_bias", "down_proj_bias"} if bias else set()
    assert set(layer.state_dict()) == {first, "down_proj"} | biases
    assert all((parameter == 0).all() for key, parameter in layer.named_parameters() if key in biases)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    up, down = nn.Linear(6, activation.width(10), bias).double(), nn.Linear(10, 6, bias).double()
    for linear, key in ((up, first), (down, "down_proj")):
        state = {"weight": layer.state_dict()[key], "bias": layer.state_dict().get(f"{key}_bias")}
        linear.load_state_dict({part: value for part, value in state.items() if value is not None})
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), down(activation(up(x))), rtol=0, atol=1e-12)


def test_swiglu_is_the_feed_forward_of_that_name() -> None:
    layer, general = SwiGLU(6, 10), FeedForward(6, 10, "swiglu")
    general.load_state_dict(layer.state_dict())
    x = torch.randn(5, 6)
    assert torch.equal(layer(x), general(x))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_its_work_is_what_a_forward_multiplies(name: str) -> None:
    layer = FeedForward(6, 10, name, kind="shared_experts")
    (work,) = layer.work(7)
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(7, 6))
    assert work.kind == "shared_experts"
    assert 2 * work.needed == 2 * work.square == 2 * work.computed == counter.get_total_flops()


def test_swiglus_work_is_three_products_a_token() -> None:
    (work,) = SwiGLU(6, 10).work(7)
    assert work.kind == "feed_forward"
    assert work.needed == work.square == work.computed == 7 * 3 * 6 * 10


@pytest.mark.parametrize(("dim", "hidden_dim", "named"), [(0, 4, "dim=0"), (4, 0, "hidden_dim=0")])
def test_bad_sizes_are_named(dim: int, hidden_dim: int, named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named}"):
        SwiGLU(dim, hidden_dim)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="activation='swish'"):
        FeedForward(4, 4, "swish")
