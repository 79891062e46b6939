"""Work functions for processes are in modules beside the tests, and are found by name."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent, HERE.parents[1] / "parallel", HERE.parents[2] / "experiments" / "benchmarks"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
