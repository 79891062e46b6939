"""An embedding that is the head too, in a pipeline: two copies that stay the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import nn

from toolkit.models import Decoder
from toolkit.parallel.mesh import Meshes


class TiedEmbedding:
    """The copy of the embedding that the first process of a pipeline has, or the last; nothing between, or untied.

    Collective where the head is tied: every process of the default group makes one.

    Attributes:
        own: this process's copy; None if it has none, or one that does not learn.
        copy: ``own`` in the last process, None elsewhere: what a sum over all parameters must leave out.
    """

    def __init__(self, decoder: Decoder, meshes: Meshes) -> None:
        self.own: nn.Parameter | None = None
        self.copy: nn.Parameter | None = None
        if not decoder.config.tied_head:
            return
        self._ends = _ends_group(meshes)
        embedding: nn.Embedding | None = decoder.embedding  # taken away between the ends
        weight = None if embedding is None else embedding.weight
        if isinstance(weight, nn.Parameter) and weight.requires_grad:
            self.own = weight
            last = meshes.rank_in("pipeline") == meshes.config.pipeline - 1
            self.copy = self.own if last else None

    @contextmanager
    def summed(self) -> Iterator[None]:
        """What a step within it adds to either copy's gradient is added to both."""
        if self.own is None:
            yield
            return
        before, self.own.grad = self.own.grad, None
        yield
        assert self.own.grad is not None, "a step goes through both ends"
        dist.all_reduce(self.own.grad, group=self._ends)
        if before is not None:
            self.own.grad += before


def _ends_group(meshes: Meshes) -> dist.ProcessGroup:
    """The first and the last process of this process's pipeline; another's ends for those between. Collective."""
    if meshes.config.pipeline == 2:
        return meshes.world["pipeline"].get_group()
    columns = meshes.world.mesh.flatten(1).T.tolist()
    groups = {tuple(ranks): dist.new_group([ranks[0], ranks[-1]]) for ranks in columns}
    return next(group for ranks, group in groups.items() if dist.get_rank() in ranks)
