"""How many rows the routed experts of a MoE compute of one sequence, and how far that depends on data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from toolkit.layers.experts import Experts
from toolkit.routing import Capacity
from toolkit.work import CERTAINTIES, Work


@dataclass(frozen=True)
class RoutedRows:
    """(token, expert) pairs that routed experts compute of one sequence without padding, or a soft router's slots.

    Attributes:
        training: in training, as ``certainty`` says.
        evaluation: in evaluation. A threshold on data (expert choice) is taken to choose as many as training does.
        certainty: what ``training`` is of a forward's rows; see :class:`toolkit.work.Work`.
    """

    training: int
    evaluation: int
    certainty: str = "exact"

    @classmethod
    def of(cls, router: Any, num_experts: int, choices: int, adjust: Iterable[Any], seq_len: int) -> RoutedRows:
        """What ``router`` gives the first ``num_experts`` of ``choices`` experts, adjusted.

        A router says so by ``rows``, ``share`` and ``certainty`` (see :class:`toolkit.routing.Router`), an adjustment
        by ``certainty``; one that does not is taken to be ``"balanced"``.
        """
        pairs, certainties = router.rows(seq_len), [router.certainty]
        computed = pairs
        if choices > num_experts:
            computed = round(pairs * router.share(num_experts))
            certainties += [] if router.equal_loads else ["balanced"]
        training = evaluation = computed
        for change in adjust:
            certainties.append(getattr(change, "certainty", "balanced"))
            if isinstance(change, Capacity):
                training = _within(change.limit(pairs, choices), training, num_experts)
                evaluation = _within(change.limit(pairs, choices, training=False), evaluation, num_experts)
        return cls(training, evaluation, max(certainties, key=CERTAINTIES.index))

    def work(self, experts: Experts) -> list[Work]:
        """The experts' products, apart where training and evaluation differ."""
        both, more = min(self.training, self.evaluation), abs(self.training - self.evaluation)
        parts = [(both, "both")]
        if more:
            parts.append((more, "training" if self.training > self.evaluation else "evaluation"))
        return [
            replace(work, phase=phase, certainty=self.certainty) for rows, phase in parts for work in experts.work(rows)
        ]


def _within(limit: int | None, rows: int, num_experts: int) -> int:
    """Of ``rows``, as many as experts that take ``limit`` each have room for."""
    return rows if limit is None else min(rows, num_experts * limit)
