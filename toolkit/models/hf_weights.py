"""A decoder's weights under Hugging Face's names: one table, read in both directions.

Every parameter here is tensors there, one after another in memory: queries, keys and values; the gate's rows and
the up projection's; an expert's matrices and the next expert's. So one way is to concatenate, the other to cut.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.checks import require
from toolkit.models.config import DecoderConfig, MoEConfig

EMBEDDING, HEAD_WEIGHT = "model.embed_tokens.weight", "lm_head.weight"

Table = Mapping[str, Mapping[str, str]]
"""Our name -> their names, in order, each with its axes."""

OUTER: Table = {
    "embedding.weight": {EMBEDDING: "vocab dim"},
    "norm.weight": {"model.norm.weight": "dim"},
}
HEAD: Table = {"head.weight": {HEAD_WEIGHT: "vocab dim"}}
LAYER: Table = {
    "attention_norm.weight": {"input_layernorm.weight": "dim"},
    "attention.qkv_proj": {
        "self_attn.q_proj.weight": "queries dim",
        "self_attn.k_proj.weight": "keys dim",
        "self_attn.v_proj.weight": "keys dim",
    },
    "attention.o_proj": {"self_attn.o_proj.weight": "dim queries"},
    "feed_forward_norm.weight": {"post_attention_layernorm.weight": "dim"},
}
DENSE: Table = {
    "feed_forward.gate_up_proj": {"mlp.gate_proj.weight": "hidden dim", "mlp.up_proj.weight": "hidden dim"},
    "feed_forward.down_proj": {"mlp.down_proj.weight": "dim hidden"},
}
SPARSE: Mapping[str, Table] = {
    # Mixtral's files, whichever version of transformers wrote them; {expert} runs over all names at once.
    "files": {
        "feed_forward.router.weight": {"block_sparse_moe.gate.weight": "experts dim"},
        "feed_forward.experts.gate_up_proj": {
            "block_sparse_moe.experts.{expert}.w1.weight": "hidden dim",
            "block_sparse_moe.experts.{expert}.w3.weight": "hidden dim",
        },
        "feed_forward.experts.down_proj": {"block_sparse_moe.experts.{expert}.w2.weight": "dim hidden"},
    },
    # The modules of transformers 5.
    "modules": {
        "feed_forward.router.weight": {"mlp.gate.weight": "experts dim"},
        "feed_forward.experts.gate_up_proj": {"mlp.experts.gate_up_proj": "experts 2*hidden dim"},
        "feed_forward.experts.down_proj": {"mlp.experts.down_proj": "experts dim hidden"},
    },
}
UNREAD = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""In old files; rope_theta says the same."""


@dataclass(frozen=True)
class Rule:
    """One parameter of ours, and their tensors, which are its parts in order.

    Attributes:
        ours: its name.
        theirs: the shape of each part, by its name.
    """

    ours: str
    theirs: dict[str, tuple[int, ...]]

    def split(self, weight: Tensor) -> dict[str, Tensor]:
        """The parts of ``weight``, views of it."""
        parts = weight.detach().flatten().split(self._sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.theirs.items(), parts, strict=True)}

    def merge(self, read: Callable[[str], Tensor], like: Tensor) -> Tensor:
        """(entries,) of the dtype and on the device of ``like``: copies of the parts, each read in its turn."""
        merged = like.new_empty(sum(self._sizes))
        for (name, shape), place in zip(self.theirs.items(), merged.split(self._sizes), strict=True):
            part = read(name)
            require(tuple(part.shape) == shape, f"{name}.shape", tuple(part.shape), f"{shape}, as the config says")
            place.copy_(part.detach().flatten())
        return merged

    @property
    def _sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self.theirs.values()]


def rules(config: DecoderConfig, layout: str) -> Iterator[Rule]:
    """Every parameter of a decoder that :func:`toolkit.models.hf_config.write_config` accepts; SPARSE has layouts."""
    attention, feed_forward = config.blocks[0].attention, config.blocks[0].feed_forward
    head_dim = attention.head_dim or config.dim // attention.heads
    sizes = {
        "vocab": config.vocab_size,
        "dim": config.dim,
        "queries": attention.heads * head_dim,
        "keys": (attention.kv_heads or attention.heads) * head_dim,
        "hidden": feed_forward.hidden_dim,
        "2*hidden": 2 * feed_forward.hidden_dim,
        "experts": feed_forward.num_experts if isinstance(feed_forward, MoEConfig) else 0,
    }
    outer = OUTER if config.tied_head else {**OUTER, **HEAD}
    layer = {**LAYER, **(SPARSE[layout] if isinstance(feed_forward, MoEConfig) else DENSE)}
    for ours, theirs in outer.items():
        yield _rule(ours, theirs, sizes)
    for n in range(len(config.blocks)):
        for ours, theirs in layer.items():
            yield _rule(
                f"blocks.{n}.{ours}", {f"model.layers.{n}.{name}": axes for name, axes in theirs.items()}, sizes
            )


def write_weights(config: DecoderConfig, weights: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Our ``weights`` by name (a state dict, or gradients) -> theirs, as views."""
    written: dict[str, Tensor] = {}
    for rule in rules(config, layout):
        written |= rule.split(weights[rule.ours])
    return written


def read_weights(
    config: DecoderConfig, names: Collection[str], read: Callable[[str], Tensor], dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Their tensors -> ours by name, each flat, where their embedding is.

    Args:
        config: of the decoder they are for.
        names: all that there are.
        read: gives the tensor of a name.
        dtype: of ours; None for theirs.

    Raises:
        ValueError: naming a tensor that is missing, left over or of a wrong shape, or if dtypes differ and none is
            given.
    """
    layout = "files" if any(".block_sparse_moe." in name for name in names) else "modules"
    wanted = list(rules(config, layout))
    _check_names(config, names, {name for rule in wanted for name in rule.theirs})
    embedding = read(EMBEDDING)
    if config.tied_head and HEAD_WEIGHT in names:
        same = torch.equal(read(HEAD_WEIGHT), embedding)
        require(same, "tie_word_embeddings", True, f"false: {HEAD_WEIGHT} is not {EMBEDDING}")

    def checked(name: str) -> Tensor:
        part = read(name)
        right = f"given: {name} is {part.dtype} and {EMBEDDING} is {embedding.dtype}"
        require(dtype is not None or part.dtype == embedding.dtype, "dtype", dtype, right)
        return part

    like = torch.empty(0, dtype=dtype or embedding.dtype, device=embedding.device)
    return {rule.ours: rule.merge(checked, like) for rule in wanted}


def _check_names(config: DecoderConfig, names: Collection[str], wanted: set[str]) -> None:
    missing = sorted(wanted.difference(names))
    require(not missing, "weights", _some(missing), "there: the config has them, and the weights do not")
    tied = {HEAD_WEIGHT} if config.tied_head else set()
    left = sorted(name for name in set(names) - wanted - tied if not UNREAD.fullmatch(name))
    require(not left, "weights", _some(left), "left out: the config has no place for them")


def _rule(ours: str, theirs: Mapping[str, str], sizes: Mapping[str, int]) -> Rule:
    shapes = {name: tuple(sizes[axis] for axis in axes.split()) for name, axes in theirs.items()}
    if any("{expert}" in name for name in shapes):
        experts = range(sizes["experts"])
        shapes = {name.replace("{expert}", str(e)): shape for e in experts for name, shape in shapes.items()}
    return Rule(ours, shapes)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
