"""Keys and values of the tokens already seen, so that decoding computes only the new ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toolkit.attention.merge import add_sink, merge
from toolkit.attention.patterns import Pattern
from toolkit.checks import require


@dataclass(frozen=True, eq=False)
class Segment:
    """Keys and values of neighbouring positions.

    k (batch, kv_heads, length, head_dim), v (batch, kv_heads, length, value_dim); ``start`` is the first's position.
    """

    k: Tensor
    v: Tensor
    start: int

    @property
    def stop(self) -> int:
        """One past the last position."""
        return self.start + self.k.shape[2]

    def part(self, start: int, stop: int) -> Segment:
        """Positions start:stop, as views."""
        where = slice(start - self.start, stop - self.start)
        return Segment(self.k[:, :, where], self.v[:, :, where], start)


class KeyValueCache:
    """Every layer's keys and values, all positions of them; grows by what each call appends.

    Keys are stored as they are attended to: rotated at their absolute position, where there is a rotation.
    """

    def __init__(self) -> None:
        self._buffers: dict[int, _Buffer] = {}

    def length(self, layer: int = 0) -> int:
        """Positions seen by ``layer``, whether or not they are still held."""
        return self._buffers[layer].stop if layer in self._buffers else 0

    def held(self, layer: int = 0) -> int:
        """Positions of ``layer`` in memory."""
        return self.length(layer)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Segment, ...]:
        """Add the next positions and return what their queries may see, as disjoint segments in order.

        Shapes: k (batch, kv_heads, new, head_dim), v (batch, kv_heads, new, value_dim). With gradients enabled
        all that is held is copied at each call; decode under ``torch.no_grad()``.

        Raises:
            ValueError: if k or v differ from what is held by more than their length.
        """
        return (self._buffers.setdefault(layer, _Buffer()).append(k, v),)


class RollingCache(KeyValueCache):
    """The newest ``window`` positions of every layer, and the first ``sinks`` ones: memory that does not grow.

    Enough for ``Causal() & SlidingWindow(window)``, and with sinks for
    ``Causal() & (SlidingWindow(window) | Sinks(sinks))``: decoding equals the whole forward pass. Keys keep
    the positions they had (StreamingLLM, Xiao et al. 2024, arXiv 2309.17453, numbers them anew by cache
    slot, which changes the model's output).

    Raises:
        ValueError: if ``window`` is not positive or ``sinks`` negative.
    """

    def __init__(self, window: int, sinks: int = 0) -> None:
        super().__init__()
        require(isinstance(window, int) and window > 0, "window", window, "a positive integer")
        require(isinstance(sinks, int) and sinks >= 0, "sinks", sinks, "an integer of 0 or more")
        self.window, self.sinks = window, sinks
        self._first: dict[int, Segment] = {}

    def held(self, layer: int = 0) -> int:
        """Positions of ``layer`` in memory."""
        if layer not in self._buffers:
            return 0
        buffer = self._buffers[layer]
        return buffer.stop - buffer.start + min(self.sinks, buffer.start)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Segment, ...]:
        """See :meth:`KeyValueCache.append`; afterwards what has left the window is forgotten."""
        buffer = self._buffers.setdefault(layer, _Buffer())
        recent = buffer.append(k, v)
        seen: tuple[Segment, ...] = (recent,)
        if recent.start > 0 and self.sinks:
            seen = self._first[layer], recent
        keep = max(recent.start, recent.stop - self.window)
        if recent.start == 0 and keep >= self.sinks > 0:
            first = recent.part(0, self.sinks)
            self._first[layer] = Segment(first.k.clone(), first.v.clone(), 0)
        elif recent.start == 0 and keep < self.sinks:
            keep = 0  # the sinks are still in the window, or next to it
        buffer.forget(keep)
        return seen


def attend_cached(
    attend: Callable[..., Any], q: Tensor, segments: tuple[Segment, ...], pattern: Pattern, **settings: Any
) -> Tensor:
    """The newest queries' attention over what a cache holds.

    Args:
        attend: :func:`toolkit.attention.attention`, or what stands in for it.
        q: (batch, heads, new, head_dim), the queries of the newest positions.
        segments: what :meth:`KeyValueCache.append` returned for them.
        pattern: over absolute positions.
        settings: of ``attend``.

    Returns:
        (batch, heads, new, value_dim): segments are attended to one by one and merged by log-sum-exp.

    Raises:
        ValueError: if the pattern sees a position that the cache has forgotten; the new positions are in the
            cache all the same, so that a new one must be filled.
    """
    end = segments[-1].stop
    start, pattern = end - q.shape[2], pattern.until(end)
    _check_nothing_missed(segments, pattern, q.shape[2], start)
    if len(segments) == 1:
        only = segments[0]
        out: Tensor = attend(q, only.k, only.v, pattern, q_start=start, kv_start=only.start, **settings)
        return out
    sink_logits = settings.pop("sink_logits", None)
    parts = [
        attend(q, one.k, one.v, pattern, q_start=start, kv_start=one.start, return_lse=True, **settings)
        for one in segments
    ]
    out, lse = merge(*zip(*parts, strict=True))
    return out if sink_logits is None else add_sink(out, lse, sink_logits)[0]


def _check_nothing_missed(segments: tuple[Segment, ...], pattern: Pattern, q_len: int, q_start: int) -> None:
    at = 0
    for segment in segments:
        missing = segment.start - at
        if missing and pattern.area(q_len, missing, q_start, at):
            raise ValueError(
                f"cache: it has forgotten positions {at} to {segment.start - 1}, which {pattern} sees from "
                f"position {q_start}; it must hold the pattern's whole window and its sinks"
            )
        at = segment.stop


class _Buffer:
    """Keys and values of positions start:stop, in memory that grows by doubling."""

    def __init__(self) -> None:
        self.start = self.stop = 0
        self._k: Tensor | None = None
        self._v: Tensor | None = None
        self._offset = 0  # where position ``start`` lies in memory

    def append(self, k: Tensor, v: Tensor) -> Segment:
        """Add positions at the end; all that are held, as views."""
        used, new = self.stop - self.start, k.shape[2]
        if self._k is not None and self._v is not None:
            for name, old, fresh in (("k", self._k, k), ("v", self._v, v)):
                alike = fresh.shape[:2] == old.shape[:2] and fresh.shape[3] == old.shape[3]
                held = (*old.shape[:2], "new", old.shape[3])
                require(alike, f"{name}.shape", tuple(fresh.shape), f"{held}, as what the cache holds")
        if torch.is_grad_enabled():
            # Writing into memory that an earlier graph has saved would spoil its backward pass.
            held = () if self._k is None or self._v is None else (self._slice(self._k), self._slice(self._v))
            self._k, self._v = (torch.cat([held[0], k], 2), torch.cat([held[1], v], 2)) if held else (k, v)
            self._offset = 0
        else:
            self._make_room(k, v, used + new)
            assert self._k is not None and self._v is not None
            where = slice(self._offset + used, self._offset + used + new)
            self._k[:, :, where], self._v[:, :, where] = k, v
        self.stop += new
        return Segment(self._slice(self._k), self._slice(self._v), self.start)

    def forget(self, start: int) -> None:
        """Drop what lies before position ``start``."""
        self._offset += start - self.start
        self.start = start

    def _slice(self, memory: Tensor) -> Tensor:
        return memory[:, :, self._offset : self._offset + self.stop - self.start]

    def _make_room(self, k: Tensor, v: Tensor, needed: int) -> None:
        """Have memory like k and v for ``needed`` positions from the offset on."""
        fits = self._k is not None and self._offset + needed <= self._k.shape[2]
        # Memory made in inference mode cannot be written outside of it.
        if fits and (torch.is_inference_mode_enabled() or not self._k.is_inference()):  # type: ignore[union-attr]
            return
        memory = [x.new_empty(*x.shape[:2], max(2 * needed, 16), x.shape[3]) for x in (k, v)]
        if self._k is not None and self._v is not None:
            for new, old in zip(memory, (self._slice(self._k), self._slice(self._v)), strict=True):
                new[:, :, : old.shape[2]] = old
        (self._k, self._v), self._offset = memory, 0
