"""What the checks are told of trials, the effect sought and the device, on any command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

from toolkit.checks import require, require_positive


def _setting(default: float, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class CheckSettings:
    """How the checks are made.

    Attributes:
        trial_steps: steps of each trial.
        trials: that differ in the seed alone.
        effect: bits per byte that a difference is expected to be.
        gpu_memory: of one device, in GB (1e9 bytes).
        mask_tokens: tokens of the check of masks; at most the context is taken.

    Raises:
        ValueError: if a number is not positive, or there is one trial only.
    """

    trial_steps: int = _setting(100, "steps of each trial")
    trials: int = _setting(3, "trials that differ in the seed alone")
    effect: float = _setting(0.01, "bits per byte that a difference is expected to be")
    gpu_memory: float = _setting(80.0, "of one device, in GB (1e9 bytes)")
    mask_tokens: int = _setting(256, "tokens of the check of masks; at most the context is taken")

    def __post_init__(self) -> None:
        require(self.trials > 1, "trials", self.trials, "2 or more: one tells nothing of the noise")
        require_positive(**{each.name: getattr(self, each.name) for each in fields(self)})

    @staticmethod
    def add_to(parser: argparse.ArgumentParser) -> None:
        """An option for each."""
        for each in fields(CheckSettings):
            name = f"--{each.name.replace('_', '-')}"
            parser.add_argument(name, type=type(each.default), default=each.default, help=each.metadata["help"])

    @staticmethod
    def of(options: argparse.Namespace) -> CheckSettings:
        """What they were set to."""
        return CheckSettings(**{each.name: getattr(options, each.name) for each in fields(CheckSettings)})


class CheckParser(argparse.ArgumentParser):
    """A command that checks settings: refused with a ``ValueError`` of one line.

    Args:
        prog: the command.
        description: what it does, of any length: the first line is shown.
    """

    def __init__(self, prog: str, description: str | None) -> None:
        first = (description or "").splitlines()[:1]
        super().__init__(prog=prog, description="".join(first), allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise ValueError(f"{message}; --help lists every setting")
