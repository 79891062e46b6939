"""The closed forms against FLOPs counted while the model runs, and what the counting leaves behind."""

from __future__ import annotations

import pytest
import torch
from compute_cases import CONFIGS, VOCAB, decoder_config
from torch.utils.flop_counter import FlopCounterMode

from toolkit.compute import cost, measure
from toolkit.layers import Experts, SelfAttention
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig


@pytest.mark.parametrize("seq_len", [40, 150])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_closed_form_is_what_is_measured(config: DecoderConfig, seq_len: int) -> None:
    measured, price = measure(Decoder(config), seq_len), cost(config, seq_len)
    assert price.forward_flops["exact"] == pytest.approx(measured.forward_flops, rel=1e-9)
    assert price.training_flops["exact"] == pytest.approx(measured.training_flops, rel=1e-9)


def test_it_is_per_token_whatever_the_batch_and_whoever_is_routed_where() -> None:
    decoder = Decoder(CONFIGS["mixed"])
    one, three = measure(decoder, 20), measure(decoder, 20, batch_size=3, seed=5)
    assert one.forward_flops == pytest.approx(three.forward_flops, rel=1e-12)
    assert one.training_flops == pytest.approx(three.training_flops, rel=1e-12)


def test_nothing_is_taken_off_where_every_pair_is_visible() -> None:
    block = BlockConfig(AttentionConfig(heads=2, pattern="Full()"), MoEConfig(24, 4, 2))
    decoder = Decoder(decoder_config(block, block))
    for module in decoder.modules():
        if isinstance(module, Experts):
            module.backend = "reference"
    tokens = torch.randint(VOCAB, (1, 30))
    with FlopCounterMode(
        display=False
    ) as counter:  # the attention by our operator's formula, `measure` by the textbook's products
        decoder(tokens)
    assert measure(decoder, 30).forward_flops * 30 == counter.get_total_flops()


def test_the_model_is_left_as_it_was() -> None:
    decoder = Decoder(CONFIGS["mixed"])
    attentions = [module for module in decoder.modules() if isinstance(module, SelfAttention)]
    experts = [module for module in decoder.modules() if isinstance(module, Experts)]
    experts[0].backend = "cpu"
    weights = {name: value.clone() for name, value in decoder.state_dict().items()}
    attends, backends = [module.attend for module in attentions], [module.backend for module in experts]
    measure(decoder, 20)
    assert [module.attend for module in attentions] == attends
    assert [module.backend for module in experts] == backends == ["cpu", "auto"]
    assert all(torch.equal(value, weights[name]) for name, value in decoder.state_dict().items())
    assert all(parameter.grad is None for parameter in decoder.parameters())


def test_the_model_is_left_as_it_was_when_the_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(CONFIGS["moe"])
    attention = next(module for module in decoder.modules() if isinstance(module, SelfAttention))
    experts = next(module for module in decoder.modules() if isinstance(module, Experts))
    attend = attention.attend
    monkeypatch.setattr(decoder.norm, "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure(decoder, 20)
    assert attention.attend is attend
    assert experts.backend == "auto"


def test_the_random_state_is_left_as_it_was() -> None:
    decoder, state = Decoder(CONFIGS["dense"]), torch.get_rng_state()
    measure(decoder, 20)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_measured_dense_layer_by_hand() -> None:
    config = decoder_config(BlockConfig(AttentionConfig(heads=2), FeedForwardConfig(40)))
    products = 32 * (3 * 32 + 32 + 3 * 40 + VOCAB)
    pairs = 10 * 11 / 2 / 10  # visible keys of a token, on average
    forward = 2 * (products + 2 * 32 * pairs)
    measured = measure(Decoder(config), 10)
    assert measured.forward_flops == pytest.approx(forward)
    assert measured.training_flops == pytest.approx(3 * forward)
