"""Bytes that training keeps, against what autograd really saves and what AdamW really holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from compute_cases import CONFIGS, decoder_config
from torch import Tensor, nn

from toolkit.attention import KeyValueCache
from toolkit.attention.cache import Segment
from toolkit.compute import cost, memory
from toolkit.layers.experts import ACTIVATIONS
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.training import TrainingConfig, build_optimizer, training_loss

BATCH = 8
PRECISIONS = ("32-true", "bf16-mixed")


def saved_bytes(decoder: Decoder, seq_len: int, precision: str) -> tuple[int, int]:
    """Bytes autograd saves of one batch: (activations, bf16 copies of weights); storages counted once."""
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    windows = torch.randint(decoder.config.vocab_size, (BATCH, seq_len + 1))
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
    with mixed, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        training_loss(decoder, windows)  # its graph dies here; `saved` keeps the tensors alive to be counted
    parameters = {parameter.untyped_storage().data_ptr() for parameter in decoder.parameters()}
    activations = copies = 0
    for pointer, tensor in saved.items():
        size = tensor.untyped_storage().nbytes()
        if pointer in parameters:
            continue
        if _copies_a_weight(tensor, decoder):
            copies += size
        else:
            activations += size
    return activations, copies


def _copies_a_weight(tensor: Tensor, decoder: nn.Module) -> bool:
    if tensor.dtype != torch.bfloat16:
        return False
    flat = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    weights = (parameter.detach().bfloat16().flatten() for parameter in decoder.parameters())
    return any(len(weight) == len(flat) and torch.equal(weight, flat) for weight in weights)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_activations_are_what_autograd_saves(config: DecoderConfig, precision: str) -> None:
    decoder = Decoder(config)
    short, long = (saved_bytes(decoder, seq_len, precision)[0] for seq_len in (64, 192))
    planned_short, planned_long = (memory(config, BATCH, seq_len, precision).activations for seq_len in (64, 192))
    assert planned_short == pytest.approx(short, rel=0.15)
    assert planned_long == pytest.approx(long, rel=0.15)
    assert planned_long - planned_short == pytest.approx(long - short, rel=0.15)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("recompute", [False, True])
def test_so_they_are_for_every_activation_and_when_pre_activations_are_computed_again(
    activation: str, recompute: bool
) -> None:
    attention = AttentionConfig(heads=2)
    moe = MoEConfig(64, 4, 2, shared_experts=1, activation=activation, recompute=recompute)
    dense = FeedForwardConfig(128, activation)
    config = decoder_config(BlockConfig(attention, moe), BlockConfig(attention, dense))
    assert memory(config, BATCH, 64).activations == pytest.approx(
        saved_bytes(Decoder(config), 64, "32-true")[0], rel=0.1
    )


ROUTED = {
    "top_1": MoEConfig(24, 8, 1),
    "scored_by_themselves": MoEConfig(24, 64, 2, router="TopKRouter(score='sqrt_softplus')"),
    "noisy": MoEConfig(24, 16, 2, router="TopKRouter(noise=NoisyTopK())"),
    "switch": MoEConfig(24, 8, 1, router="SwitchRouter()"),
    "gshard": MoEConfig(24, 8, 2, router="GShardRouter()"),
    "expert_choice": MoEConfig(24, 8, 2, router="ExpertChoiceRouter(capacity_factor=2.0)"),
    "expert_choice_of_few": MoEConfig(24, 16, 1, router="ExpertChoiceRouter(capacity_factor=0.5)"),
    "sinkhorn": MoEConfig(24, 8, 2, router="SinkhornRouter()"),
    "hash": MoEConfig(24, 8, 2, router="HashRouter()"),
    "hash_with_a_gate": MoEConfig(24, 8, 2, router="HashRouter(dim=32)"),
    "random": MoEConfig(24, 8, 2, router="RandomRouter()"),
    "soft": MoEConfig(24, 4, 1, router="SoftRouter(slots=4)", causal=False),
    "soft_with_many_slots": MoEConfig(24, 8, 1, router="SoftRouter(slots=16)", causal=False, shared_experts=1),
    "shared": MoEConfig(24, 8, 2, shared_experts=2, shared_gate=True),
    "shared_beside_choice": MoEConfig(24, 8, 2, shared_experts=2, router="ExpertChoiceRouter(capacity_factor=1.0)"),
    "without_computation": MoEConfig(24, 4, 2, identity_experts=2, constant_experts=2),
    "capacity": MoEConfig(24, 8, 2, capacity_factor=0.5),
    "rounded": MoEConfig(24, 8, 2, adjust=("TokenRounding(64)",)),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("moe", ROUTED.values(), ids=ROUTED)
def test_so_they_are_however_tokens_are_routed(moe: MoEConfig, precision: str) -> None:
    config = decoder_config(BlockConfig(AttentionConfig(heads=2), moe))
    for seq_len in (50, 130):
        run = saved_bytes(Decoder(config), seq_len, precision)[0]
        assert memory(config, BATCH, seq_len, precision).activations == pytest.approx(run, rel=0.15)


@pytest.mark.parametrize("router", ["ExpertChoiceRouter(capacity_factor=2.0)", "SoftRouter(slots={})", "TopKRouter()"])
def test_what_more_experts_take_is_what_they_take_in_a_run(router: str) -> None:
    few, many = (
        decoder_config(BlockConfig(AttentionConfig(heads=2), MoEConfig(48, n, 2, router=text, causal=False)))
        for n, text in ((4, router.format(4)), (32, router.format(8)))
    )
    planned = memory(many, BATCH, 64).activations - memory(few, BATCH, 64).activations
    run = saved_bytes(Decoder(many), 64, "32-true")[0] - saved_bytes(Decoder(few), 64, "32-true")[0]
    assert planned == pytest.approx(run, rel=0.15)


@pytest.mark.parametrize("moe", [ROUTED["expert_choice"], ROUTED["soft"]], ids=["expert_choice", "soft"])
def test_pre_activations_that_are_computed_again_take_nothing(moe: MoEConfig) -> None:
    config = decoder_config(BlockConfig(AttentionConfig(heads=2), replace(moe, hidden_dim=64, recompute=True)))
    run = saved_bytes(Decoder(config), 64, "32-true")[0]
    assert memory(config, BATCH, 64).activations == pytest.approx(run, rel=0.15)


@pytest.mark.parametrize("capacity", [0.25, 0.75])
def test_a_layer_that_some_tokens_go_through_keeps_their_share(capacity: float) -> None:
    attention = AttentionConfig(heads=2)
    config = decoder_config(*[BlockConfig(attention, FeedForwardConfig(128), capacity)] * 2)
    assert memory(config, BATCH, 64).activations == pytest.approx(
        saved_bytes(Decoder(config), 64, "32-true")[0], rel=0.1
    )


@pytest.mark.parametrize("wide", ["vocab", "hidden", "expert_hidden", "heads", "experts"])
def test_each_part_grows_as_it_does_in_a_run(wide: str) -> None:
    def config(factor: int) -> DecoderConfig:
        sizes = {
            name: factor if name == wide else 1 for name in ("vocab", "hidden", "expert_hidden", "heads", "experts")
        }
        attention = AttentionConfig(heads=2 * sizes["heads"], head_dim=16)
        moe = BlockConfig(attention, MoEConfig(24 * sizes["expert_hidden"], 4 * sizes["experts"], 2))
        dense = BlockConfig(attention, FeedForwardConfig(64 * sizes["hidden"]))
        return decoder_config(dense, moe, vocab_size=100 * sizes["vocab"])

    small, large = config(1), config(8)
    planned = memory(large, BATCH, 64).activations - memory(small, BATCH, 64).activations
    run = saved_bytes(Decoder(large), 64, "32-true")[0] - saved_bytes(Decoder(small), 64, "32-true")[0]
    assert planned == pytest.approx(run, rel=0.15)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_parameters_gradients_and_moments_are_adamw_s(config: DecoderConfig) -> None:
    decoder = Decoder(config)
    optimizer = build_optimizer(decoder, TrainingConfig(steps=1))
    training_loss(decoder, torch.randint(config.vocab_size, (4, 33)))[0].backward()
    optimizer.step()
    planned = memory(config, BATCH, 64)
    moments = [state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    gradients = [parameter.grad.nbytes for parameter in decoder.parameters() if parameter.grad is not None]
    assert planned.parameters == sum(parameter.nbytes for parameter in decoder.parameters())
    assert planned.gradients == sum(gradients)
    assert planned.optimizer == sum(moments)
    assert planned.training == planned.parameters + planned.gradients + planned.optimizer + planned.activations


def test_bf16_keeps_a_copy_of_every_weight_that_a_product_reads() -> None:
    config = CONFIGS["untied"]
    price, planned = cost(config, 64), memory(config, BATCH, 64, "bf16-mixed")
    _, copies = saved_bytes(Decoder(config), 64, "bf16-mixed")
    assert planned.parameters == 6 * price.total_parameters
    # the embedding is looked up and the norms multiply: neither is cast
    assert copies == 2 * (price.total_parameters - price.parameters["embedding"] - price.parameters["norms"])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_cache_of_keys_and_values_is_what_decoding_keeps(config: DecoderConfig) -> None:
    cache = KeyValueCache()
    kept: dict[int, tuple[Segment, ...]] = {}
    append = cache.append

    def record(layer: int, k: Tensor, v: Tensor) -> tuple[Segment, ...]:
        kept[layer] = append(layer, k, v)
        return kept[layer]

    cache.append = record  # type: ignore[method-assign]
    with torch.no_grad():
        Decoder(config)(torch.randint(config.vocab_size, (3, 21)), cache)
    size = sum(one.k.nbytes + one.v.nbytes for segments in kept.values() for one in segments)
    assert memory(config, 3, 21).kv_cache == size
    assert memory(config, 3, 21, "bf16-mixed").kv_cache == size // 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, 16), "batch_size=0: it must be positive"),
        ((2, 0), "seq_len=0: it must be positive"),
        ((2, 16, "int8"), "precision='int8': it must be one of"),
    ],
)
def test_bad_sizes_are_refused(settings: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        memory(CONFIGS["dense"], *settings)
