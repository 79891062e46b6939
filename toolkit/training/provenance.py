"""Which code made a result."""

from __future__ import annotations

import subprocess
from pathlib import Path

from toolkit import __version__


def code_version() -> str:
    """The release, and where the code is a git checkout its commit, ``-dirty`` if files were changed."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return __version__
    return f"{__version__} {found.stdout.strip()}" if found.returncode == 0 else __version__
