"""The plan of a decoder's tensor parallelism, as styles for ``torch.distributed.tensor.parallel.parallelize_module``.

Between layers tokens are in the *stream*: sharded over the tokens of each sequence, or whole in every process. A layer
takes them whole and gives partial sums: the stream is gathered before it and scattered, summed, behind it. Everything
inside then has partial gradients: of a parameter that each process has whole they are summed, and what is whole in the
forward pass but added once (a bias behind a product, experts without computation, a router's losses) counts
1 / tensor in each process.

    stream --gather--> [layer: own heads, own hidden units] --sum and scatter--> stream

Source: Megatron-LM: Shoeybi et al. 2019 (arXiv 1909.08053), section 3; the sharded stream: Korthikanti et al. 2022
(arXiv 2205.05198), section 4.2.2.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module
from torch.distributed.tensor.placement_types import Placement

from toolkit.checks import require
from toolkit.layers import Block, MixtureOfDepths, MoE
from toolkit.models import Decoder
from toolkit.models.decoder import DecoderOutput
from toolkit.parallel.tensor.local import LocalForward, local_heads, spread, summed, view_of, whole
from toolkit.parallel.tensor.shares import Share, distribute, shares

SEQUENCE = 1
"""The axis of tokens in (batch, length, dim)."""


def tensor_parallel(decoder: Decoder, mesh: DeviceMesh, sequence_parallel: bool = True) -> None:
    """Share every layer of ``decoder`` among the processes of ``mesh``, in place.

    Attention is shared by heads, feed-forwards and routed experts by hidden units, embedding and head by the rows of
    the vocabulary; logits are gathered. Routers are whole in every process, and choose the same for the same tokens.
    Every process must hold the same weights and be given the same tokens.

    Args:
        decoder: a model of plain tensors.
        mesh: one dimension.
        sequence_parallel: shard the stream, and with it the norms' work and what is kept for their backward pass, over
            the tokens: as many bytes sent. False: it is whole in every process.

    Raises:
        ValueError: if heads, hidden units or the vocabulary cannot be shared evenly, or a layer has a part that cannot
            be shared by heads; in a forward, if tokens cannot be shared evenly with ``sequence_parallel``.
    """
    stream: Placement = Shard(SEQUENCE) if sequence_parallel else Replicate()
    size, vocab_size = mesh.size(), decoder.config.vocab_size
    right = f"a multiple of tensor={size}: {vocab_size} / {size} is not whole"
    require(vocab_size % size == 0, "vocab_size", vocab_size, right)
    plan: dict[str, ParallelStyle] = {"embedding": Vocabulary(stream), "norm": FinalNorm(stream)}
    if decoder.head is not None:
        plan["head"] = VocabularyRows()
    for layer, block in enumerate(decoder.blocks):
        plan |= _of_layer(f"blocks.{layer}", block, stream)
    parallelize_module(decoder, mesh, plan)
    decoder.register_forward_hook(_gather_logits)


def _of_layer(path: str, block: nn.Module, stream: Placement) -> dict[str, ParallelStyle]:
    """The styles of one layer's parts, by path.

    A mixture of depths chooses among whole sequences, so the stream is whole within it.
    """
    if isinstance(block, MixtureOfDepths):
        outer: dict[str, ParallelStyle] = {path: WholeStream(stream), f"{path}.router": Whole()}
        return outer | _of_layer(f"{path}.block", block.block, Replicate())
    right = "Block or MixtureOfDepths with tensor parallelism"
    require(isinstance(block, Block), path, type(block).__name__, right)
    norms = {f"{path}.{name}": Norm(stream) for name in ("attention_norm", "feed_forward_norm")}
    return {**norms, **{f"{path}.{name}": Layer(stream) for name in ("attention", "feed_forward")}}


class Layer(ParallelStyle):
    """A layer of whole tokens that gives partial sums."""

    def __init__(self, stream: Placement) -> None:
        super().__init__()
        self.stream = stream

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        local, size = LocalForward(), mesh.size()
        for part in module.modules():
            found = shares(part, size)
            if attributes := local_heads(part, mesh):
                local.attributes[part] = attributes
            distribute(part, mesh, found)
            local.views[part] = {name: view_of(share, size) for name, share in found.items()}
            if isinstance(part, MoE):
                _count_once(part, size)
        local.around(module)
        module.register_forward_pre_hook(lambda _, inputs: (_gather(inputs[0], mesh, self.stream), *inputs[1:]))
        module.register_forward_hook(lambda _, __, y: _scatter(y, mesh, self.stream))
        return module


class Norm(ParallelStyle):
    """A norm of the stream; its weight is whole, and sees this process's tokens where the stream is sharded."""

    def __init__(self, stream: Placement) -> None:
        super().__init__()
        self.stream = stream

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        view = summed if self.stream.is_shard() else whole
        names = [name for name, _ in module.named_parameters(recurse=False)]
        distribute(module, mesh, {name: Share() for name in names})
        LocalForward({module: dict.fromkeys(names, view)}).around(module)
        return module


class FinalNorm(Norm):
    """The norm before the head, for which tokens are gathered."""

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        super()._apply(module, mesh)
        module.register_forward_hook(
            lambda _, __, y: _in_stream(y, mesh, self.stream).redistribute(mesh, [Replicate()])
        )
        return module


class Whole(ParallelStyle):
    """A module that every process has and computes alike."""

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        local = LocalForward()
        for part in module.modules():
            names = [name for name, _ in part.named_parameters(recurse=False)]
            distribute(part, mesh, {name: Share() for name in names})
            local.views[part] = dict.fromkeys(names, whole)
        local.around(module)
        return module


class WholeStream(ParallelStyle):
    """A module, computed alike by every process, within which the stream is whole."""

    def __init__(self, stream: Placement) -> None:
        super().__init__()
        self.stream = stream

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        def gather(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return _in_stream(inputs[0], mesh, self.stream).redistribute(mesh, [Replicate()]).to_local(), *inputs[1:]

        module.register_forward_pre_hook(gather)
        module.register_forward_hook(
            lambda _, __, y: _no_view(_in_stream(y, mesh, Replicate()).redistribute(mesh, [self.stream]).to_local())
        )
        return module


class VocabularyRows(ParallelStyle):
    """A matrix with a row for each token of the vocabulary, of which every process has its stretch."""

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        distribute(module, mesh, {"weight": Share(0)})
        LocalForward({module: {"weight": spread}}).around(module)
        return module


class Vocabulary(VocabularyRows):
    """The embedding: each process looks up the tokens it has rows for, and the sum goes into the stream."""

    def __init__(self, stream: Placement) -> None:
        super().__init__()
        self.stream = stream

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        super()._apply(module, mesh)

        def whole_ids(_: Any, inputs: tuple[Tensor]) -> tuple[DTensor]:
            length, size = inputs[0].shape[SEQUENCE], mesh.size()
            fits = not self.stream.is_shard() or length % size == 0
            require(fits, "length", length, f"a multiple of tensor={size}, or sequence_parallel=False")
            return (_in_stream(inputs[0], mesh, Replicate()),)

        module.register_forward_pre_hook(whole_ids)
        module.register_forward_hook(lambda _, __, y: y.redistribute(mesh, [self.stream]).to_local())
        return module


def _in_stream(x: Tensor, mesh: DeviceMesh, placement: Placement) -> DTensor:
    return DTensor.from_local(x, mesh, [placement], run_check=False)


def _gather(x: Tensor, mesh: DeviceMesh, stream: Placement) -> Tensor:
    """The stream -> whole tokens, whose gradients are partial sums."""
    whole_tokens = _in_stream(x, mesh, stream).redistribute(mesh, [Replicate()])
    return whole_tokens.to_local(grad_placements=[Partial()])


def _scatter(y: Tensor, mesh: DeviceMesh, stream: Placement) -> Tensor:
    """Partial sums -> the stream."""
    return _in_stream(y, mesh, Partial()).redistribute(mesh, [stream]).to_local()


def _count_once(moe: MoE, size: int) -> None:
    """What each process computes whole, in a layer of partial sums, adds its 1 / size."""
    if moe.zero_experts is not None:
        moe.zero_experts.register_forward_hook(lambda _, __, y: y / size)

    def thin(_: Any, __: Any, assignment: Any) -> Any:
        for loss in assignment.losses.values():
            if loss.requires_grad:  # the value stays: every process reads the same
                loss.register_hook(lambda gradient: gradient / size)
        return assignment

    moe.router.register_forward_hook(thin)


def _gather_logits(_: Any, __: Any, output: DecoderOutput) -> DecoderOutput:
    """Logits of each process's stretch of the vocabulary -> all, of which every process makes the same loss."""
    logits = output.logits
    assert isinstance(logits, DTensor), "the head is one"
    return replace(output, logits=_no_view(logits.redistribute(placements=[Replicate()]).to_local()))


class _NoView(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _no_view(x: Tensor) -> Tensor:
    """The same values and memory, no view to autograd: FSDP2 hooks onto a layer's output, and warns of views."""
    y: Tensor = _NoView.apply(x)
    return y
