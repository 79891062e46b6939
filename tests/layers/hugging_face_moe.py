"""Hugging Face's MoE blocks, this library's of the same settings, and how the one's weights are the other's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from toolkit.layers import Activation, MoE, ZeroComputationExperts
from toolkit.routing import TopKRouter
from toolkit.routing.balancer import BiasBalancer

DIM, HIDDEN, EXPERTS = 16, 24, 8  # rows of 16 bytes, as grouped products want
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        theirs: makes Hugging Face's block, its experts computed by ``"eager"`` or ``"grouped_mm"``.
        ours: makes this library's, its experts computed by a backend.
        convert: their tensors by name (weights, or the gradients of all weights) -> ours. It is linear.
        implementations: of their experts.
    """

    theirs: Callable[[str], nn.Module]
    ours: Callable[[str], MoE]
    convert: Callable[[Tensors], Tensors]
    implementations: Sequence[str] = ("eager", "grouped_mm")


class InDouble(TorchFunctionMode):
    """Whatever asks for fp32 gets fp64: their routers are fp32 also in an fp64 model."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        raised = [torch.float64 if value is torch.float32 else value for value in args]
        named = {name: torch.float64 if v is torch.float32 else v for name, v in (kwargs or {}).items()}
        return func(*raised, **named)


def rename(theirs: Tensors, renamed: dict[str, str]) -> Tensors:
    """``experts.*`` as they are and ``renamed``; a name that is neither is an error."""
    known = {**{name: name for name in theirs if name.startswith("experts.")}, **renamed}
    return {known[name]: tensor for name, tensor in theirs.items()}


def plain(theirs: Tensors) -> Tensors:
    """Mixtral, OLMoE, Qwen3: the router is called a gate."""
    return rename(theirs, {"gate.weight": "router.weight"})


def shared(prefix: str) -> Callable[[Tensors], Tensors]:
    """Besides, shared experts as three matrices under ``prefix``, perhaps a gate on them and a correction bias."""

    def convert(theirs: Tensors) -> Tensors:
        left = dict(theirs)
        gate, up, down = (left.pop(f"{prefix}.{name}_proj.weight") for name in ("gate", "up", "down"))
        names = {
            "gate.weight": "router.weight",
            "gate.e_score_correction_bias": "router.balancer.bias",
            "shared_expert_gate.weight": "shared_gate.weight",
        }
        return {**rename(left, names), "shared.gate_up_proj": torch.cat([gate, up]), "shared.down_proj": down}

    return convert


def gpt_oss(theirs: Tensors) -> Tensors:
    """Matrices (in, out) with gate and up rows in turn."""
    made = rename(theirs, {"router.weight": "router.weight", "router.bias": "router.bias"})
    made["experts.gate_up_proj"] = rearrange(made["experts.gate_up_proj"], "e d (h two) -> e (two h) d", two=2)
    made["experts.gate_up_proj_bias"] = rearrange(made["experts.gate_up_proj_bias"], "e (h two) -> e (two h)", two=2)
    made["experts.down_proj"] = rearrange(made["experts.down_proj"], "e h d -> e d h")
    return made


def longcat(theirs: Tensors) -> Tensors:
    """Identity experts have rows in gate_up_proj, which nothing uses."""
    names = {"router.classifier.weight": "router.weight", "router.e_score_correction_bias": "router.balancer.bias"}
    made = rename(theirs, names)
    real = len(made["experts.down_proj"])
    return {**made, "experts.gate_up_proj": made["experts.gate_up_proj"][:real]}


def switch(theirs: Tensors) -> Tensors:
    """Each expert is a module of two linear layers."""
    up, down = (
        torch.stack([theirs[f"experts.expert_{e}.{name}.weight"] for e in range(EXPERTS)]) for name in ("wi", "wo")
    )
    return {
        "router.weight": theirs["router.classifier.weight"],
        "experts.up_proj": up,
        "experts.down_proj": down,
    }


def block(model: str, config: str, name: str, **settings: Any) -> Callable[[str], nn.Module]:
    """``transformers.models.MODEL``'s class ``name`` with these settings."""

    def make(implementation: str) -> nn.Module:
        import transformers

        module = __import__(f"transformers.models.{model}.modeling_{model}", fromlist=[name])
        made = getattr(transformers, config)(hidden_size=DIM, **settings)
        made._experts_implementation = implementation
        return getattr(module, name)(made)

    return make


def switch_block(_: str) -> nn.Module:
    """With room for all tokens; GELU in place of ReLU, which is none of our activations; the router in fp64."""
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

    config = SwitchTransformersConfig(d_model=DIM, d_ff=HIDDEN, num_experts=EXPERTS, expert_capacity=1000)
    config.dense_act_fn = "gelu"
    made = SwitchTransformersSparseMLP(config)
    made.router.dtype = torch.float64
    return made


def moe(top_k: int, router: dict[str, Any] | None = None, correction: int = 0, **settings: Any) -> Callable[[str], MoE]:
    """This library's, with a TopKRouter of the settings ``router`` and a bias on ``correction`` experts."""

    def make(backend: str) -> MoE:
        zero = settings.get("zero_experts")
        choices = EXPERTS + (0 if zero is None else zero.count)
        balancer = BiasBalancer(correction) if correction else None
        ours = TopKRouter(DIM, choices, top_k, balancer=balancer, losses=[], **(router or {}))
        return MoE(DIM, HIDDEN, EXPERTS, top_k, router=ours, backend=backend, **settings)

    return make


DEEPSEEK: dict[str, Any] = {
    "moe_intermediate_size": HIDDEN,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 2,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
}
SIGMOID = {"score": "sigmoid", "groups": 4, "top_groups": 2, "scale": 2.5}
OLMOE = {"intermediate_size": HIDDEN, "num_experts": EXPERTS, "num_experts_per_tok": 3, "norm_topk_prob": False}
QWEN = {"moe_intermediate_size": HIDDEN, "num_experts": EXPERTS, "num_experts_per_tok": 3}
CLAMPED = Activation("clamped_swiglu", limit=1.5)  # tight, so that many values are beyond it

FAMILIES = {
    "mixtral": Family(
        block(
            "mixtral",
            "MixtralConfig",
            "MixtralSparseMoeBlock",
            intermediate_size=HIDDEN,
            num_local_experts=EXPERTS,
            num_experts_per_tok=2,
        ),
        moe(2),
        plain,
    ),
    "olmoe": Family(block("olmoe", "OlmoeConfig", "OlmoeSparseMoeBlock", **OLMOE), moe(3, {"normalize": False}), plain),
    "qwen2_moe": Family(
        block(
            "qwen2_moe",
            "Qwen2MoeConfig",
            "Qwen2MoeSparseMoeBlock",
            **QWEN,
            norm_topk_prob=False,
            shared_expert_intermediate_size=2 * HIDDEN,
        ),
        moe(3, {"normalize": False}, shared_experts=2, shared_gate=True),
        shared("shared_expert"),
    ),
    "qwen3_moe": Family(
        block("qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeSparseMoeBlock", **QWEN, norm_topk_prob=True), moe(3), plain
    ),
    "deepseek_v2": Family(
        block(
            "deepseek_v2",
            "DeepseekV2Config",
            "DeepseekV2Moe",
            **DEEPSEEK,
            topk_method="group_limited_greedy",
            num_attention_heads=2,
        ),
        moe(
            3,
            {"normalize": False, "groups": 4, "top_groups": 2, "group_score": "max", "scale": 2.5},
            shared_experts=2,
        ),
        shared("shared_experts"),
    ),
    "deepseek_v3": Family(
        block("deepseek_v3", "DeepseekV3Config", "DeepseekV3MoE", **DEEPSEEK),
        moe(3, SIGMOID, correction=EXPERTS, shared_experts=2),
        shared("shared_experts"),
    ),
    "glm4_moe": Family(
        block("glm4_moe", "Glm4MoeConfig", "Glm4MoeMoE", **DEEPSEEK),
        moe(3, SIGMOID, correction=EXPERTS, shared_experts=2),
        shared("shared_experts"),
    ),
    "gpt_oss": Family(
        block(
            "gpt_oss",
            "GptOssConfig",
            "GptOssMLP",
            intermediate_size=HIDDEN,
            num_local_experts=EXPERTS,
            num_experts_per_tok=3,
            swiglu_limit=CLAMPED.limit,
        ),
        moe(3, {"pre_softmax": False, "bias": True}, activation=CLAMPED, bias=True),
        gpt_oss,
    ),
    "longcat_flash": Family(
        block(
            "longcat_flash",
            "LongcatFlashConfig",
            "LongcatFlashMoE",
            expert_ffn_hidden_size=HIDDEN,
            n_routed_experts=EXPERTS,
            zero_expert_num=4,
            moe_topk=3,
            routed_scaling_factor=2.5,
        ),
        moe(
            3,
            {"normalize": False, "scale": 2.5},
            correction=EXPERTS + 4,
            zero_experts=ZeroComputationExperts(DIM, identity=4),
        ),
        longcat,
        implementations=("eager",),
    ),
    "switch_transformers": Family(switch_block, moe(1, activation="gelu"), switch, implementations=("eager",)),
}
