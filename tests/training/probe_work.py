"""What the probes of several processes find."""

from __future__ import annotations

import torch
from training_cases import MODEL, training

from toolkit.parallel import ParallelConfig, build_mesh, parallelize
from toolkit.training import LanguageModel
from toolkit.training.parts import own_part
from toolkit.training.router_layers import moe_layers
from toolkit.training.router_probe import RouterProbe


def probed(parallel: ParallelConfig | None = None) -> RouterProbe:
    """After one look at the batch of this process."""
    torch.manual_seed(0)
    module = LanguageModel(MODEL, training()).double()
    meshes = None if parallel is None else build_mesh(parallel)
    if meshes is not None and not meshes.config.is_replicated:
        parallelize(module.decoder, meshes)
    probe = RouterProbe()
    probe.take(own_part(windows(0 if meshes is None else meshes.batch_rank), meshes), meshes)
    probe.flip_rates(module.decoder, dict(moe_layers(module)), None, meshes)
    return probe


def windows(reader: int) -> torch.Tensor:
    """(3, 33), each reader's own."""
    return torch.randint(256, (3, 33), generator=torch.Generator().manual_seed(reader))


def found(layouts: list[ParallelConfig]) -> list[tuple[list[int], dict[str, list[list[bool]]]]]:
    """The probe's tokens and choices, by layout."""
    probes = [probed(parallel) for parallel in layouts]
    return [plain(probe) for probe in probes]


def plain(probe: RouterProbe) -> tuple[list[int], dict[str, list[list[bool]]]]:
    """Its tokens and choices."""
    assert probe.tokens is not None
    return probe.tokens[0].tolist(), {name: chosen.tolist() for name, chosen in probe.chosen.items()}
