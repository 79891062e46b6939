"""What one check found: a name, pass, warn or fail, and the figure it rests on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.checks import require_choice

STATUSES = ("pass", "warn", "fail")
"""From the best to the worst."""


@dataclass(frozen=True)
class Finding:
    """One answer.

    Attributes:
        check: the question's name.
        status: one of :data:`STATUSES`.
        figure: what was measured or counted, with units, and against what.

    Raises:
        ValueError: if the status is unknown.
    """

    check: str
    status: str
    figure: str

    def __post_init__(self) -> None:
        require_choice("status", self.status, STATUSES)

    def __str__(self) -> str:
        """One line."""
        return f"{self.status:4}  {self.check}: {self.figure}"


def graded(value: float, passes: float, warns: float) -> str:
    """``"pass"`` up to ``passes``, ``"warn"`` up to ``warns``, else ``"fail"``; NaN fails."""
    return "pass" if value <= passes else "warn" if value <= warns else "fail"


def conclude(findings: Sequence[Finding]) -> None:
    """Print a line for each; end with exit code 1 where one fails."""
    for finding in findings:
        print(finding)
    if any(finding.status == "fail" for finding in findings):
        sys.exit(1)
