"""A decoder's config in the words of a Hugging Face ``config.json``, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.checks import require, require_choice
from toolkit.models.config import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.models.hf_differences import pattern_of, require_same, usual, window_of
from toolkit.models.hf_rope import read_rope, write_rope


@dataclass(frozen=True)
class Family:
    """What Hugging Face calls a kind of decoder, and what it takes where a field is left out.

    Attributes:
        architecture: the class with the language model's head.
        windowed: whether it has a sliding window.
        sparse: whether its feed-forwards are MoEs.
        defaults: of the fields that older files leave out.
    """

    architecture: str
    windowed: bool
    sparse: bool
    defaults: dict[str, Any]


FAMILIES = {
    "llama": Family("LlamaForCausalLM", False, False, {}),
    "mistral": Family("MistralForCausalLM", True, False, {"num_key_value_heads": 8, "sliding_window": 4096}),
    "mixtral": Family(
        "MixtralForCausalLM",
        True,
        True,
        {
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "router_aux_loss_coef": 0.001,
            "router_jitter_noise": 0.0,
        },
    ),
}
DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "attention_dropout": 0.0, "tie_word_embeddings": False}

ONLY = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "quantization_config": None}
"""Fields of which one value is carried; null stands for it too."""

NUMBER = r"([-+.\de]+)"
ROUTER = re.compile(
    rf"TopKRouter\((?:normalize=True, )?(?:noise=Jitter\({NUMBER}\), )?losses=\[(?:LoadBalancingLoss\({NUMBER}\))?\]\)"
)


def read_config(settings: Mapping[str, Any]) -> DecoderConfig:
    """The decoder that the fields of a ``config.json`` describe.

    Token ids, the longest position and the settings of generation are not a decoder's, and left out.

    Raises:
        ValueError: naming a field that is missing, or whose value no decoder here has.
    """
    model_type = settings.get("model_type")
    require_choice("model_type", model_type, tuple(FAMILIES))
    family = FAMILIES[str(model_type)]
    for name, value in ONLY.items():
        given = settings.get(name)
        require(given is None or given == value, name, given, f"{value!r}, or left out: nothing else is carried")
    known = DEFAULTS | family.defaults | dict(settings)
    window = known.get("sliding_window")
    require(family.windowed or window is None, "sliding_window", window, f"null in a {family.architecture}")
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    vocab_size, dim, layers, heads = (_size(known, name) for name in sizes)
    attention = AttentionConfig(
        heads,
        known.get("num_key_value_heads"),
        known.get("head_dim"),
        pattern=pattern_of(window),
        **read_rope(known),
        dropout_p=known["attention_dropout"] or 0.0,
    )
    block = BlockConfig(usual(attention, dim), _sparse(known) if family.sparse else _dense(known))
    return DecoderConfig(vocab_size, dim, (block,) * layers, known["tie_word_embeddings"], known["rms_norm_eps"])


def write_config(config: DecoderConfig, for_evaluation: bool = False, max_length: int | None = None) -> dict[str, Any]:
    """The fields of the ``config.json`` from which :func:`read_config` reads ``config``.

    Args:
        config: a decoder's.
        for_evaluation: leave out what only training sees and there is no field for: a MoE's ``z_loss``,
            ``capacity_factor``, ``drop_policy``, ``recompute``, ``causal``.
        max_length: the longest context that is served; None: what the rotary scaling says, or nothing.

    Raises:
        ValueError: naming the block and the setting that no family of Hugging Face's has, a ``mup_base_dim`` that is
            not ``dim`` (their logits have no multiplier), or a ``max_length`` that is not positive or that a dynamic
            scaling, whose own length has the same field, contradicts.
    """
    attention, feed_forward = config.blocks[0].attention, config.blocks[0].feed_forward
    window = window_of(attention.pattern)
    kind = "mixtral" if isinstance(feed_forward, MoEConfig) else "llama" if window is None else "mistral"
    family = FAMILIES[kind]
    settings: dict[str, Any] = {
        "model_type": kind,
        "architectures": [family.architecture],
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": feed_forward.hidden_dim,
        "num_hidden_layers": len(config.blocks),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "head_dim": attention.head_dim or config.dim // attention.heads,
        "attention_dropout": attention.dropout_p,
        "rms_norm_eps": config.norm_eps,
        **write_rope(attention),
        "tie_word_embeddings": config.tied_head,
        "hidden_act": "silu",
        # A decoder knows no token by its meaning, and Hugging Face's defaults, 1 and 2, would end a generation.
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if max_length is not None:
        require(max_length > 0, "max_length", max_length, "positive, or None")
        settings["max_position_embeddings"] = max_length
    if family.windowed:
        settings["sliding_window"] = window
    if isinstance(feed_forward, MoEConfig):
        settings |= _router_fields(feed_forward)
        settings |= {"num_local_experts": feed_forward.num_experts, "num_experts_per_tok": feed_forward.top_k}
    # What was written must read as what there was: so every setting that has no field is refused.
    require_same(config, read_config(settings), family.architecture, for_evaluation)
    if kind == "llama":
        right = f"a divisor of dim={config.dim} in a {family.architecture}"
        fits = config.dim % attention.heads == 0
        require(fits, "decoder.config.blocks[0].attention.heads", attention.heads, right)
    return settings


def _size(settings: Mapping[str, Any], name: str) -> int:
    value = settings.get(name)
    require(isinstance(value, int) and value > 0, name, value, "a positive whole number")
    return int(value)  # type: ignore[arg-type]


def _dense(settings: Mapping[str, Any]) -> FeedForwardConfig:
    return FeedForwardConfig(_size(settings, "intermediate_size"))


def _sparse(settings: Mapping[str, Any]) -> MoEConfig:
    """Mixtral's: softmax over all experts, the gates of the chosen divided by their sum, whatever top_k is.

    Hugging Face's balance loss is top_k at perfect balance and ours 1, so the coefficient is top_k times theirs: as
    strong there. They take the means over layers before the product, which hides a collapse; we take the mean of the
    layers' losses (:func:`toolkit.routing.conventions.balance_value`). Their jitter reaches the experts too, ours
    the router alone. There is no z-loss.
    """
    hidden_dim, num_experts, top_k = (
        _size(settings, name) for name in ("intermediate_size", "num_local_experts", "num_experts_per_tok")
    )
    # To 15 digits, so that a coefficient that someone wrote survives being divided and multiplied.
    balance = float(f"{top_k * (settings['router_aux_loss_coef'] or 0.0):.15g}")
    epsilon = settings["router_jitter_noise"] or 0.0
    if top_k > 1 and not epsilon:
        return MoEConfig(hidden_dim, num_experts, top_k, balance=balance, z_loss=0.0)
    parts = [
        *(["normalize=True"] if top_k == 1 else []),
        *([f"noise=Jitter({epsilon!r})"] if epsilon else []),
        f"losses=[{f'LoadBalancingLoss({balance!r})' if balance else ''}]",
    ]
    return MoEConfig(hidden_dim, num_experts, top_k, router=f"TopKRouter({', '.join(parts)})")


def _router_fields(moe: MoEConfig) -> dict[str, float]:
    """The inverse of what :func:`_sparse` does with them; of another router, whatever it may be."""
    epsilon, balance = 0.0, moe.balance
    if moe.router is not None:
        match = ROUTER.fullmatch(moe.router)
        epsilon, balance = (float(part or 0.0) for part in match.groups()) if match else (0.0, 0.0)
    return {"router_aux_loss_coef": balance / moe.top_k, "router_jitter_noise": epsilon}
