"""A figure of a report: the picture, what it shows, its interactive twin, and what it was made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

INLINE_RUNS = 4
"""A figure of more runs than this has them folded away."""


@dataclass(frozen=True)
class ReportFigure:
    """A PNG and what it shows, in words that name its runs.

    Attributes:
        path: of the PNG.
        caption: what is drawn, in whole sentences of Markdown.
        interactive: the same as a plotly figure, or the dict of one (``data``, ``layout``); None where there is none.
        command: what makes it again.
        runs: names of the runs that it is drawn from.
    """

    path: Path
    caption: str
    interactive: Any = field(default=None, repr=False, compare=False)
    command: str = ""
    runs: tuple[str, ...] = ()

    def backed(self, *, command: str = "", runs: Iterable[str] = (), interactive: Any = None) -> ReportFigure:
        """The same figure with what is given set, and the rest as it was."""
        return replace(
            self,
            command=command or self.command,
            runs=tuple(runs) or self.runs,
            interactive=self.interactive if interactive is None else interactive,
        )

    def described(self) -> str:
        """The caption, and under it the command and the runs, as Markdown; a long list of runs is folded away."""
        parts = [f"*{self.caption}*", *self._source()]
        return "\n\n".join(parts)

    def _source(self) -> list[str]:
        command = f"Drawn by `{self.command}`" if self.command else "Drawn"
        if not self.runs:
            return [f"<small>{command}.</small>"] if self.command else []
        names = ", ".join(f"`{run}`" for run in self.runs)
        if len(self.runs) <= INLINE_RUNS:
            return [f"<small>{command} from {names}.</small>"]
        summary = f"{'Command and the ' if self.command else ''}{len(self.runs)} runs behind it"
        return [f"<details><summary>{summary}</summary>\n\n{command} from {names}.\n\n</details>"]
