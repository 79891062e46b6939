"""Routers of Hugging Face with our settings of the same, and the least that a balancer is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.routing import Assignment, TopKRouter

DIM, EXPERTS = 16, 8


class Bias(nn.Module):
    """The least a balancer is: a bias, and a count of what it was shown."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("bias", bias)
        self.observed: list[Assignment] = []

    def observe(self, assignment: Assignment) -> None:
        self.observed.append(assignment)


# Hugging Face's routers by model: (their module, our settings), both of DIM and EXPERTS.


def mixtral() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

    config = MixtralConfig(hidden_size=DIM, num_local_experts=EXPERTS, num_experts_per_tok=2)
    return MixtralTopKRouter(config), {"top_k": 2}


def olmoe(top_k: int, normalize: bool) -> tuple[nn.Module, dict[str, Any]]:
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter

    config = OlmoeConfig(hidden_size=DIM, num_experts=EXPERTS, num_experts_per_tok=top_k, norm_topk_prob=normalize)
    return OlmoeTopKRouter(config), {"top_k": top_k, "normalize": normalize}


def qwen3(normalize: bool) -> tuple[nn.Module, dict[str, Any]]:
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

    config = Qwen3MoeConfig(hidden_size=DIM, num_experts=EXPERTS, num_experts_per_tok=4, norm_topk_prob=normalize)
    return Qwen3MoeTopKRouter(config), {"top_k": 4, "normalize": normalize}


def deepseek_v2(method: str) -> tuple[nn.Module, dict[str, Any]]:
    from transformers import DeepseekV2Config
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter

    config = DeepseekV2Config(
        hidden_size=DIM,
        num_attention_heads=2,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=3,
        topk_method=method,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=16.0,
    )
    ours = {"top_k": 3, "normalize": False, "scale": 16.0}
    limit = {"groups": 4, "top_groups": 2, "group_score": "max"} if method == "group_limited_greedy" else {}
    return DeepseekV2TopkRouter(config), ours | limit


def deepseek_v3(normalize: bool) -> tuple[nn.Module, dict[str, Any]]:
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    config = DeepseekV3Config(
        hidden_size=DIM,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=3,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        norm_topk_prob=normalize,
    )
    ours = {"top_k": 3, "score": "sigmoid", "normalize": normalize, "groups": 4, "top_groups": 2, "scale": 2.5}
    return DeepseekV3TopkRouter(config), ours


def deepseek_v4() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import DeepseekV4Config
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4TopKRouter

    config = DeepseekV4Config(
        hidden_size=DIM, n_routed_experts=EXPERTS, num_experts_per_tok=3, routed_scaling_factor=1.5
    )
    return DeepseekV4TopKRouter(config), {"top_k": 3, "score": "sqrt_softplus", "scale": 1.5}


def glm4() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import Glm4MoeConfig
    from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter

    config = Glm4MoeConfig(
        hidden_size=DIM,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        routed_scaling_factor=1.7,
        norm_topk_prob=True,
    )
    return Glm4MoeTopkRouter(config), {"top_k": 2, "score": "sigmoid", "groups": 2, "top_groups": 1, "scale": 1.7}


def gpt_oss() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

    config = GptOssConfig(hidden_size=DIM, num_local_experts=EXPERTS, num_experts_per_tok=4)
    return GptOssTopKRouter(config), {"top_k": 4, "pre_softmax": False, "bias": True}


FAMILIES: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
    "mixtral": mixtral,
    "olmoe": lambda: olmoe(4, False),
    "olmoe top-1": lambda: olmoe(1, False),
    "olmoe normalised": lambda: olmoe(4, True),
    "qwen3": lambda: qwen3(True),
    "qwen3 plain": lambda: qwen3(False),
    "deepseek v2 greedy": lambda: deepseek_v2("greedy"),
    "deepseek v2": lambda: deepseek_v2("group_limited_greedy"),
    "deepseek v3": lambda: deepseek_v3(True),
    "deepseek v3 plain": lambda: deepseek_v3(False),
    "deepseek v4": deepseek_v4,
    "glm 4": glm4,
    "gpt-oss": gpt_oss,
}


def twins(family: str) -> tuple[TopKRouter, nn.Module]:
    """Our router and theirs with the same weights, learned bias and selection bias (of both signs, far from zero)."""
    theirs, settings = FAMILIES[family]()
    correction = getattr(theirs, "e_score_correction_bias", None)
    balancer = None
    if correction is not None:
        correction.copy_(torch.randn(EXPERTS) - 0.5)
        balancer = Bias(correction.clone())
    ours = TopKRouter(DIM, EXPERTS, **settings, balancer=balancer, losses=[])
    if ours.bias is not None:
        nn.init.normal_(ours.bias)
        theirs.bias.data.copy_(ours.bias.data)
    theirs.weight.data.copy_(ours.weight.data)
    return ours, theirs


def dense(weights: Tensor, experts: Tensor) -> Tensor:
    """(tokens, EXPERTS), the gate of each expert and 0 for those not chosen: the order of the choices is no matter."""
    return torch.zeros(len(weights), EXPERTS, dtype=weights.dtype).scatter(1, experts, weights)
