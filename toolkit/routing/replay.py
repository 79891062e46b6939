"""Routing replay: the experts of one forward, chosen again in another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from torch import Tensor, nn

from toolkit.checks import require
from toolkit.routing.recompute import recomputing
from toolkit.routing.router import Router

Tape = Callable[[Tensor], Tensor]


class RoutingReplay:
    """What every router of a model chose, forward after forward, to be chosen again.

    The experts are those of the record; their scores, gates and losses are computed afresh, so that
    gradients reach the router. So two runs that differ by rounding stay on the same experts: a policy and the engine
    that sampled from it (Ma et al. 2025, arXiv 2510.11370), one process and many, a forward and its
    recomputation under activation checkpointing.

    Recomputation that a top-k flip must not touch has a record of each checkpointed call::

        checkpoint(block, x, use_reentrant=False, context_fn=lambda: RoutingReplay.contexts(block))

    A replay starts at the first forward recorded, and may stop before the last. Random noise is drawn again:
    gates are the same only where scores are. Run it eagerly: ``torch.compile(fullgraph=True)`` refuses to play.
    Every router that passes its choice through ``Router.replayed`` takes part.

    Args:
        choices: by the router's name in the model, what it chose in each forward, in order: int64 (tokens, top_k)
            for a :class:`TopKRouter`. A :class:`GShardRouter` with a random second expert has two entries a training
            forward: the experts, and bool (tokens,), whether the second was kept. By default empty, to be recorded.

    >>> import torch
    >>> from toolkit.routing import TopKRouter
    >>> router, x = TopKRouter(16, 8, 2), torch.randn(5, 16)
    >>> with RoutingReplay.record(router) as replay:
    ...     before = router(x)
    >>> _ = torch.nn.init.normal_(router.weight)
    >>> with replay.play(router):
    ...     bool((router(x).expert == before.expert).all())
    True
    """

    def __init__(self, choices: Mapping[str, Sequence[Tensor]] | None = None) -> None:
        self.choices = {name: list(chosen) for name, chosen in (choices or {}).items()}

    @classmethod
    def record(cls, model: nn.Module) -> AbstractContextManager[RoutingReplay]:
        """Within it every router of ``model`` writes down what it chooses, recomputation left out.

        Raises:
            ValueError: if ``model`` has no router.
        """
        return _Recording(cls(), model)

    def play(self, model: nn.Module) -> AbstractContextManager[RoutingReplay]:
        """Within it every router of ``model`` chooses what this holds; the model may be another one of the same names.

        Raises:
            ValueError: if the names of the routers differ from those recorded; within it, if a choice is of
                another shape, a router runs more often than it did, or runs again in a backward
                pass outside of :meth:`contexts`, where which forward it repeats is not known.
        """
        return _Playing(self, model)

    @classmethod
    def contexts(cls, model: nn.Module) -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
        """The two contexts ``context_fn`` of ``torch.utils.checkpoint`` asks for: a record, and its replay.

        ``model`` is what the checkpointed function runs. It may stand inside another record or replay.
        """
        replay = cls()
        return _Recording(replay, model), _Playing(replay, model)


class _Splice:
    """A context that puts a tape into every router, and what was there back; it can be entered again."""

    def __init__(self, replay: RoutingReplay, model: nn.Module) -> None:
        self.replay = replay
        self.routers = {name: module for name, module in model.named_modules() if isinstance(module, Router)}
        require(bool(self.routers), "model", type(model).__name__, "a model with routers")
        self.before: list[dict[str, Tape | None]] = []

    def __enter__(self) -> RoutingReplay:
        self.before.append({name: router.tape for name, router in self.routers.items()})
        for name, router in self.routers.items():
            router.tape = self.tape(name, router.tape)
        return self.replay

    def __exit__(self, *error: object) -> None:
        for name, tape in self.before.pop().items():
            self.routers[name].tape = tape

    def tape(self, name: str, outer: Tape | None) -> Tape:
        """What the router of this name shall pass its choices through, given what it passes them through now."""
        raise NotImplementedError


class _Recording(_Splice):
    """Writes down what is chosen, after what an outer replay made of it."""

    def tape(self, name: str, outer: Tape | None) -> Tape:
        chosen = self.replay.choices.setdefault(name, [])

        def write(choice: Tensor) -> Tensor:
            choice = choice if outer is None else outer(choice)
            if not recomputing():
                chosen.append(choice.detach())
            return choice

        return write


class _Playing(_Splice):
    """Puts what is written down in the place of what is chosen, whatever an outer replay holds."""

    def __enter__(self) -> RoutingReplay:
        here, there = sorted(self.routers), sorted(self.replay.choices)
        require(here == there, "model", f"routers {here}", f"one with the routers of the record, {there}")
        return super().__enter__()

    def tape(self, name: str, outer: Tape | None) -> Tape:
        chosen, entered_to_recompute = iter(self.replay.choices[name]), recomputing()

        def read(choice: Tensor) -> Tensor:
            known = entered_to_recompute or not recomputing()
            require(
                known, "replay", f"{name!r} recomputed", "given to checkpoint as context_fn (RoutingReplay.contexts)"
            )
            replayed = next(chosen, None)
            if replayed is None:
                raise ValueError(f"replay of router {name!r}: it has run more often than in the record")
            here, there = tuple(choice.shape), tuple(replayed.shape)
            require(here == there, f"choice of router {name!r}, of shape", here, f"as recorded, {there}")
            return replayed.to(choice.device)

        return read
