"""Decoders trained for three steps, in one process on whole sequences or in several on parts of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from toolkit.attention import Documents
from toolkit.layers import auxiliary_losses
from toolkit.layers.recomputation import recompute_layers
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.parallel.context import (
    average_gradients,
    context_cross_entropy,
    context_parallel,
    join_sequence,
    next_token_labels,
    split_sequence,
)
from toolkit.routing import update_balancers

LENGTH, STEPS = 32, 3


@dataclass(frozen=True)
class Case:
    """A decoder of one attention layer for each config, the last with experts, and how it is spread."""

    attention: tuple[AttentionConfig, ...]
    layout: str = "zigzag"
    method: str = "ring"
    packed: bool = False
    padded: bool = False
    moe: bool = True
    router: str | None = None
    dtype: torch.dtype = torch.float64
    sharded: bool = False
    recompute: str = "none"
    compiled: bool = False

    def decoder(self) -> Decoder:
        """The same weights every time."""
        torch.manual_seed(5)
        experts = MoEConfig(hidden_dim=12, num_experts=4, top_k=2, router=self.router)
        dense = FeedForwardConfig(hidden_dim=20)
        last = len(self.attention) - 1
        blocks = tuple(
            BlockConfig(one, experts if self.moe and n == last else dense) for n, one in enumerate(self.attention)
        )
        decoder = Decoder(DecoderConfig(vocab_size=50, dim=16, blocks=blocks)).to(self.dtype)
        for name, parameter in decoder.named_parameters():
            if name.endswith("sink_logits"):
                torch.nn.init.normal_(parameter)
        return decoder

    def batch(self, step: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Whole token ids, labels, and what a decoder is told of them."""
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(50, (2, LENGTH), generator=generator)
        told, documents = {}, None
        if self.packed:
            documents = Documents.from_lengths([[3, 13, 9, 7], [8, 10, 14]]).ids
            told["sequence_ids"] = documents
        if self.padded:
            valid = torch.ones_like(ids, dtype=torch.bool)
            valid[0, 25:] = False
            told["valid"], documents = valid, torch.where(valid, 0, -1)
        return ids, next_token_labels(ids, documents), told


def train(case: Case, group: DeviceMesh | None = None) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses of each step, and the logits, gradients and weights at the end, whole."""
    decoder = case.decoder()
    decoder.train()
    if group is not None:
        names = list(decoder.state_dict())
        assert context_parallel(decoder, group, layout=case.layout, method=case.method) is decoder
        assert list(decoder.state_dict()) == names
        recompute_layers(decoder, case.recompute)
        for block in decoder.blocks if case.compiled else ():
            block.compile(backend="aot_eager")
        for part in (*decoder.blocks, decoder) if case.sharded else ():
            fully_shard(part, mesh=group)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=0.02, weight_decay=0.1)
    losses = []
    torch.manual_seed(17)
    for step in range(STEPS):
        ids, labels, told = case.batch(step)
        optimizer.zero_grad()
        if group is None:
            logits = decoder(ids, **told).logits
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        else:
            ids, labels = (split_sequence(x, group, case.layout) for x in (ids, labels))
            told = {name: split_sequence(x, group, case.layout) for name, x in told.items()}
            logits = decoder(ids, **told).logits
            loss = context_cross_entropy(logits, labels, group)
        loss = loss + sum(auxiliary_losses(decoder).values())
        loss.backward()
        if group is not None and not case.sharded:
            average_gradients(decoder, group)
        optimizer.step()
        update_balancers(decoder)
        value = loss.detach()
        if group is not None:
            dist.all_reduce(value)
            value /= dist.get_world_size()
            logits = join_sequence(logits, group, case.layout)
        losses.append(float(value))
    found = {"logits": logits, **{f"d {name}": p.grad for name, p in decoder.named_parameters() if p.grad is not None}}
    found |= decoder.state_dict()
    whole = {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in found.items()}
    return losses, {name: x.detach().numpy() for name, x in whole.items()}


def train_parts(cases: dict[str, Case], copies: int = 1) -> dict[str, tuple[list[float], dict[str, np.ndarray]]]:
    """:func:`train` over the "context" dimension of a mesh, for each case; ``copies`` such groups do the same."""
    shape = copies, dist.get_world_size() // copies
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "context"))
    return {name: train(case, mesh["context"]) for name, case in cases.items()}


def refusals() -> dict[str, str]:
    """What a context-parallel decoder says to what it cannot do."""
    group, said = dist.group.WORLD, {}
    case = Case((AttentionConfig(heads=2),))
    decoder = context_parallel(case.decoder(), group)
    ids = torch.zeros(1, 8, dtype=torch.long)
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[:, 4:] = dist.get_rank() == 1  # the last chunk, which rank 0 holds, is padding
    attempts = {
        "generate": lambda: decoder.generate(ids, 2),
        "again": lambda: context_parallel(decoder, group),
        "uneven padding": lambda: decoder(ids, valid=valid),
        "odd length": lambda: decoder(ids[:, :7]),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except ValueError as error:
            said[name] = str(error)
    decoder.eval()
    logits = decoder(ids, valid=valid).logits  # no losses are taken of an evaluation
    said["copy"] = str(torch.equal(copy.deepcopy(decoder)(ids, valid=valid).logits, logits))
    return said
