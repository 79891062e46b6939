"""What the processes of the tests of an expert parallel decoder do: train it on their part of every batch."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from toolkit.layers import MoE, auxiliary_losses
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, MoEConfig
from toolkit.parallel import (
    ParallelConfig,
    build_mesh,
    clip_gradients,
    full_optimizer_state,
    full_state_dict,
    load_full_state_dict,
    shard_layers,
)
from toolkit.parallel.expert import expert_parallel, expert_parameters
from toolkit.routing import BiasBalancer, RoutingReplay, RoutingStats, update_balancers
from toolkit.routing.reduce import set_batch_group

STEPS, SEQUENCES, LENGTH, CLIP = 3, 8, 12, 0.1
BIASED = "TopKRouter(score='sigmoid', balancer=BiasBalancer(rate=0.05))"


def make_decoder(dtype: torch.dtype = torch.float64, seed: int = 0) -> Decoder:
    """Two layers: softmax with a balance loss, a shared expert and biases; sigmoid with a bias that balances."""
    torch.manual_seed(seed)
    attention = AttentionConfig(heads=2)
    first = MoEConfig(hidden_dim=8, num_experts=4, top_k=2, shared_experts=1, shared_gate=True, bias=True)
    second = MoEConfig(hidden_dim=12, num_experts=8, top_k=3, router=BIASED, zero_experts=2)
    blocks = tuple(BlockConfig(attention, each) for each in (first, second))
    return Decoder(DecoderConfig(vocab_size=24, dim=16, blocks=blocks)).to(dtype)


def batches() -> Tensor:
    return torch.randint(24, (STEPS, SEQUENCES, LENGTH + 1), generator=torch.Generator().manual_seed(7))


def train(
    decoder: Decoder, called: nn.Module, windows: Tensor, average: bool = False, replay: RoutingReplay | None = None
) -> dict[str, Any]:
    """Three steps of AdamW with clipping; what the last forward's routers did, over all processes."""
    experts = {id(parameter) for parameter in expert_parameters(decoder).values()}
    groups = [[p for p in decoder.parameters() if (id(p) in experts) == chosen] for chosen in (False, True)]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups if group], lr=1e-2)
    losses, norms = [], []
    for batch in windows:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(called(batch[:, :-1]).logits.flatten(0, 1), batch[:, 1:].flatten())
        loss = loss + sum(auxiliary_losses(decoder).values())
        loss.backward()
        if average:
            for parameter in groups[0]:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
        norms.append(clip_gradients(decoder.parameters(), CLIP).item())
        optimizer.step()
        update_balancers(decoder)
        losses.append(loss.detach())
    stats = [moe.stats for moe in decoder.modules() if isinstance(moe, MoE)]
    return {"losses": torch.stack(losses), "norms": norms, "stats": stats, "optimizer": optimizer}


def errors(way: str, copies: int = 1) -> dict[str, float]:
    """The largest difference of weights, biases, losses, norms and statistics from one process's."""
    single = make_decoder()
    expected = train(single, single, batches())
    decoder = make_decoder()
    ranks = dist.get_world_size()
    config = ParallelConfig(devices=ranks, data=1 if way == "fsdp" else ranks, shard=ranks if way == "fsdp" else 1,
                            expert=ranks // copies)  # fmt: skip
    meshes = build_mesh(config)
    expert_parallel(decoder, meshes.expert)
    called: nn.Module = decoder
    if way == "ddp":
        called = DistributedDataParallel(decoder)
    elif way == "fsdp":
        shard_layers(decoder, meshes.sharding, config, expert_parameters(decoder).values())
    found = train(decoder, called, _own(batches()), average=way == "loop")
    state = full_state_dict(decoder)
    worst = {path: float((state[path] - value).abs().max()) for path, value in single.state_dict().items()}
    worst["losses"] = float((_mean(found["losses"]) - expected["losses"]).abs().max())
    worst["norms"] = max(abs(a - b) for a, b in zip(found["norms"], expected["norms"], strict=True))
    worst["stats"] = max(map(_apart, found["stats"], expected["stats"]))
    assert min(expected["norms"]) > CLIP  # so that clipping is in what is compared
    moments = full_optimizer_state(found["optimizer"], decoder)["state"].values()
    assert any("experts" in path for path in expert_parameters(decoder))
    worst["moments"] = abs(_sum(moments) - _sum(expected["optimizer"].state_dict()["state"].values()))
    return worst


def _own(windows: Tensor) -> Tensor:
    return windows.chunk(dist.get_world_size(), dim=1)[dist.get_rank()]


def _mean(losses: Tensor) -> Tensor:
    losses = losses.clone()
    dist.all_reduce(losses)
    return losses / dist.get_world_size()


def _apart(one: RoutingStats, other: RoutingStats) -> float:
    return float((one.all_reduce().pack() - other.pack()).abs().max())


def _sum(moments: Any) -> float:
    return float(sum(moment["exp_avg_sq"].sum() for moment in moments))


def replayed_losses() -> tuple[list[float], list[float]]:
    """Losses in fp32 of one process, and of all with its routing."""
    single, decoder = make_decoder(torch.float32), make_decoder(torch.float32)
    with RoutingReplay.record(single) as record:
        expected = train(single, single, batches())["losses"]
    ranks, rank = dist.get_world_size(), dist.get_rank()
    own = {name: [choice.chunk(ranks)[rank] for choice in chosen] for name, chosen in record.choices.items()}
    expert_parallel(decoder, build_mesh(ParallelConfig(devices=ranks, expert=ranks)).expert)
    with RoutingReplay(own).play(decoder):
        found = train(decoder, DistributedDataParallel(decoder), _own(batches()))["losses"]
    return expected.tolist(), _mean(found).tolist()


def state_there_and_back(folder: str) -> dict[str, float]:
    """A decoder's state loaded into a shared one and gathered again, a copy of it, and a checkpoint into ``folder``."""
    single, decoder = make_decoder(seed=1), make_decoder(seed=2)
    ranks = dist.get_world_size()
    expert_parallel(decoder, build_mesh(ParallelConfig(devices=ranks, expert=ranks)).expert)
    load_full_state_dict(decoder, single.state_dict())
    state = full_state_dict(decoder)
    found = {path: float((state[path] - value).abs().max()) for path, value in single.state_dict().items()}
    ids = _own(batches())[0, :, :-1]
    found["copy"] = float((deepcopy(decoder)(ids).logits - single(ids).logits).abs().max())
    held = sum(p.to_local().untyped_storage().nbytes() for p in expert_parameters(decoder).values())
    whole = sum(p.nbytes for part in single.modules() if isinstance(part, MoE) for p in part.experts.parameters())
    found["memory"] = abs(held - whole / ranks)
    dcp.save({"model": decoder.state_dict()}, checkpoint_id=folder)
    return found


def sums_over_a_group() -> tuple[list[float], list[float], list[float]]:
    """Of two groups of two: a balancer's bias and the counts of a router, summed over the own group."""
    groups = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])]
    rank = dist.get_rank()
    counts = torch.tensor([3.0, 1.0]) if rank < 2 else torch.tensor([1.0, 3.0])
    stats = RoutingStats.none(2)
    stats = stats.unpack(torch.cat([counts.double(), stats.pack()[2:]]))
    given = stats.all_reduce(groups[rank // 2]).counts
    set_batch_group(groups[rank // 2])
    balancer = BiasBalancer(2, rate=1.0)
    balancer.pending += counts.long()
    update_balancers(balancer)
    set_for_all = stats.all_reduce().counts
    set_batch_group(None)
    return balancer.bias.tolist(), given.tolist(), [*set_for_all.tolist(), *stats.all_reduce().counts.tolist()]
