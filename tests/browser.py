"""A browser that opens a page from the disk: the DOM once its scripts have run, and what its console says."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = "chromium", "chromium-browser", "google-chrome"
EXCUSE = "NO_BROWSER_BECAUSE"
"""Variable by which .ci/run says why it could not install one; without it CI fails where there is none."""

_QUIET = ["background-networking", "component-update", "sync", "gpu", "quic"]


def browser() -> str:
    """The browser's path; where there is none the test is skipped, or in CI failed."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        excuse = os.environ.get(EXCUSE)
        if os.environ.get("CI") == "true" and not excuse:
            pytest.fail(f"no {' or '.join(NAMES)}, and {EXCUSE} does not say why it could not be installed")
        pytest.skip(excuse or f"no {' or '.join(NAMES)} on this machine")
    return found


def visit(address: str, profile: Path, width: int = 1400) -> tuple[str, list[str]]:
    """The DOM and the lines of the console; ``profile`` is a fresh folder, so that no other visit is in the way."""
    command = [browser(), "--headless=new", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in _QUIET)]
    command += [f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0", f"--window-size={width},1000"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=10000", "--dump-dom", address]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return run.stdout, [line for line in run.stderr.splitlines() if "CONSOLE" in line]
