"""Other libraries' MoE layers, for :mod:`moe` beside them: given our weights, each called its own way."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor, nn

from toolkit.layers import MoE


class Shape(NamedTuple):
    """One layer and the tokens it is given."""

    tokens: int
    dim: int
    hidden_dim: int
    num_experts: int
    top_k: int

    def __str__(self) -> str:
        return str(tuple(self))


def hugging_face(implementation: str) -> Callable[[Shape, MoE], nn.Module]:
    """Mixtral's block with ``implementation`` of its experts."""

    def build(shape: Shape, moe: MoE) -> nn.Module:
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

        config = MixtralConfig(
            hidden_size=shape.dim,
            intermediate_size=shape.hidden_dim,
            num_local_experts=shape.num_experts,
            num_experts_per_tok=shape.top_k,
        )
        config._experts_implementation = implementation
        block = MixtralSparseMoeBlock(config)
        block.load_state_dict({name.replace("router", "gate"): weight for name, weight in moe.state_dict().items()})
        return block

    return build


class ScatterMoE(nn.Module):
    """The scattermoe package's gated MLP behind our router."""

    def __init__(self, shape: Shape, moe: MoE) -> None:
        super().__init__()
        package = import_module("scattermoe.mlp")
        self.gate, self.top_k = nn.Linear(shape.dim, shape.num_experts, bias=False), shape.top_k
        self.gate.load_state_dict({"weight": moe.router.weight})
        self.mlp = package.GLUMLP(
            input_size=shape.dim,
            hidden_size=shape.hidden_dim,
            num_experts=shape.num_experts,
            top_k=shape.top_k,
            activation=nn.SiLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (1, tokens, dim) -> (1, tokens, dim)."""
        gates, experts = torch.topk(self.gate(x[0]).float().softmax(-1), self.top_k)
        y: Tensor = self.mlp(x[0], (gates / gates.sum(-1, keepdim=True)).to(x.dtype), experts)
        return y[None]


class MegaBlocks(nn.Module):
    """The megablocks package's dropless MoE, grouped, with its own router and weights."""

    def __init__(self, shape: Shape, moe: MoE) -> None:
        super().__init__()
        arguments, dmoe = (import_module(f"megablocks.layers.{name}") for name in ("arguments", "dmoe"))
        self.layer = dmoe.dMoE(
            arguments.Arguments(
                hidden_size=shape.dim,
                ffn_hidden_size=shape.hidden_dim,
                moe_num_experts=shape.num_experts,
                moe_top_k=shape.top_k,
                mlp_type="glu",
                mlp_impl="grouped",
                bias=False,
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (1, tokens, dim) -> (1, tokens, dim)."""
        y: Tensor = self.layer(x)[0]
        return y


PEERS: dict[str, Callable[[Shape, MoE], nn.Module]] = {
    "HF eager": hugging_face("eager"),
    "HF grouped_mm": hugging_face("grouped_mm"),
}
GPU_PEERS = {**PEERS, "ScatterMoE": ScatterMoE, "MegaBlocks": MegaBlocks}
