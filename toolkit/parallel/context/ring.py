"""Ring attention: queries stay, keys and values go round, and parts are merged by their log-sum-exp.

In step s every rank gives its keys and values to the rank s places on and gets those of the rank s places back: after
n - 1 steps all have met. They go straight from their owner, not from hand to hand, so that chunks which a pattern does
not show to a rank are never sent to it, and their gradients go straight back. What each rank sends is the same, (n - 1)
parts for a full pattern; where the links themselves form a ring a message of step s crosses s of them. The next step's
messages are on their way while the present one is computed.

Source: Liu et al. 2023, Ring Attention (arXiv 2310.01889), algorithm 1; merging and the backward pass of a part from
the whole's log-sum-exp: Dao et al. 2022 (arXiv 2205.14135), section 3.1 and algorithm 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from toolkit.attention import Causal, Pattern
from toolkit.checks import require, require_choice
from toolkit.parallel.context.layout import Layout
from toolkit.parallel.context.ring_function import RingFunction
from toolkit.parallel.context.rounds import Round
from toolkit.parallel.context.schedule import schedule


@dataclass(frozen=True, eq=False)
class RingAttention:
    """Attention over a sequence of which each rank of a group holds a part; takes the place of ``attention``.

    Called with this rank's queries, keys and values it gives this rank's outputs: what one process would give for the
    same tokens, forward and backward. It takes any pattern of positions, written for the whole sequence; tensors in it
    (documents, masks) are of the whole sequence on every rank.

    Memory: a rank holds its own part and two others' keys and values; backward sends them round again.

    Attributes:
        group: the ranks, in the order of the layout.
        layout: ``"zigzag"`` or ``"contiguous"``, see :class:`Layout`.
    """

    group: dist.ProcessGroup
    layout: str = "zigzag"

    @torch.compiler.disable
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pattern: Pattern | None = None,
        *,
        scale: float | None = None,
        softcap: float | None = None,
        sink_logits: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
        dropout_p: float = 0.0,
        return_lse: bool = False,
        q_start: int | None = None,
        kv_start: int = 0,
        backend: str = "auto",
    ) -> Tensor | tuple[Tensor, Tensor]:
        """This rank's part of the whole sequence's attention.

        Shapes: q (batch, heads, length, head_dim), k (batch, kv_heads, length, head_dim), v (batch, kv_heads, length,
        value_dim), of this rank's tokens -> out (batch, heads, length, value_dim) and, with ``return_lse``, lse (batch,
        heads, length). The rest as for :func:`toolkit.attention.attention`; ``Causal()`` by default. With ``dropout_p``
        every rank draws a seed and the first rank's is everyone's: the one process's bits where its generator stands
        where that of one process would.

        Raises:
            ValueError: if ``q_start`` or ``kv_start`` is given, ``backend`` is ``"reference"``, the parts do not
                fit the layout, the pattern cannot be evaluated on parts, or what ``attention`` refuses.
        """
        standing = q_start is None and kv_start == 0
        require(standing, "q_start and kv_start", (q_start, kv_start), "left out: the layout says where tokens stand")
        require_choice("backend", backend, ("auto", "triton", "blockwise"))
        require(0.0 <= dropout_p < 1.0, "dropout_p", dropout_p, "at least 0 and below 1")
        require(softcap is None or 0 <= softcap < float("inf"), "softcap", softcap, "positive, or None for none")
        pattern = Causal() if pattern is None else pattern
        _check_parts(q, k, v)
        _check_per_head(q, pattern, sink_logits=sink_logits, alibi_slopes=alibi_slopes)
        layout = Layout(self.layout, self.group.size(), q.shape[2] * self.group.size())
        call = Round(
            self.group,
            schedule(pattern, layout, self.group.rank()),
            layout.chunk_length,
            q.shape[-1] ** -0.5 if scale is None else scale,
            softcap or 0.0,
            dropout_p,
            ("triton" if q.is_cuda else "blockwise") if backend == "auto" else backend,
        )
        slopes = None if alibi_slopes is None else alibi_slopes.float()
        out, lse = RingFunction.apply(q, k, v, sink_logits, slopes, self._seed(q.device) if dropout_p else None, call)
        return (out, lse) if return_lse else out

    def _seed(self, device: torch.device) -> Tensor:
        """The first rank's draw; the others draw too, so that generators stay in step."""
        seed = torch.randint(2**63 - 1, (1,), device=device)
        dist.broadcast(seed, dist.get_global_rank(self.group, 0), group=self.group)
        return seed

    def __deepcopy__(self, memo: dict[int, Any]) -> RingAttention:
        """Itself: a copy of a model talks to the same ranks."""
        return self


def _check_parts(q: Tensor, k: Tensor, v: Tensor) -> None:
    """What ``attention`` asks of its tensors, and that they are of the same tokens."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        require(x.ndim == 4, f"{name}.shape", tuple(x.shape), "(batch, heads, length, head_dim)")
        alike = x.shape[0] == q.shape[0] and x.shape[2] == q.shape[2]
        require(alike, f"{name} (batch, length)", (x.shape[0], x.shape[2]), f"q's, {(q.shape[0], q.shape[2])}")
        require(x.dtype == q.dtype, f"{name}.dtype", x.dtype, f"q's, {q.dtype}")
    require(k.shape[1] == v.shape[1], "v kv_heads", v.shape[1], f"k's, {k.shape[1]}")
    require(k.shape[3] == q.shape[3], "k head_dim", k.shape[3], f"q's, {q.shape[3]}")
    require(q.shape[1] % k.shape[1] == 0, "kv_heads", k.shape[1], f"a divisor of heads={q.shape[1]}")


def _check_per_head(q: Tensor, pattern: Pattern, **given: Tensor | None) -> None:
    """The pattern is for q's batch and heads, and so is what has a number for each head."""
    require(pattern.device in (None, q.device), "pattern device", pattern.device, f"q's, {q.device}")
    for axis, name in enumerate(("batch", "heads")):
        require(pattern.planes[axis] in (1, q.shape[axis]), f"pattern {name}", pattern.planes[axis], "1 or q's")
    for name, tensor in given.items():
        fits = tensor is None or (tensor.shape == q.shape[1:2] and tensor.is_floating_point())
        require(fits, name, tensor, f"floating-point numbers of shape (heads,) = ({q.shape[1]},), or None")
    slopes = given["alibi_slopes"]
    learned = slopes is not None and slopes.requires_grad
    require(not learned, "alibi_slopes.requires_grad", learned, "False: the slopes are constants and get no gradient")
