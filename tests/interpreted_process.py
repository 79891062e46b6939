"""A process in which Triton interprets: reads a check and its arguments, answers with what became of it.

``triton.jit`` asks for the interpreter when a kernel is defined, so the process is set up before anything is imported.
"""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


class Interpreter:
    """The process, from outside; call it with the name of a function of its module of checks and its arguments.

    Args:
        folder: where the module and what it imports lie.
        checks: the name of the module.
    """

    def __init__(self, folder: Path, checks: str) -> None:
        paths = [str(folder), str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), checks],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def __call__(self, check: str, *arguments: Any) -> Any:
        """What the check returns; what it raises is raised here as an ``AssertionError`` with its traceback."""
        assert self._process.stdin is not None and self._process.stdout is not None
        pickle.dump((check, arguments), self._process.stdin)
        self._process.stdin.flush()
        passed, answer = pickle.load(self._process.stdout)
        if not passed:
            raise AssertionError(answer)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def serve(checks: str) -> None:
    """Answer with functions of the module ``checks`` until the input ends; what they print goes to the error stream."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    import torch

    module = importlib.import_module(checks)

    torch.set_num_threads(1)
    while True:
        try:
            check, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = True, getattr(module, check)(*arguments)
        except Exception:
            answer = False, traceback.format_exc()
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
