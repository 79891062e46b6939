"""Whether commands that a page shows would be taken: by scripts' own parsers, the Makefile, the list of extras."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any
from unittest import mock

import toolkit
from toolkit.compute.cost import shapes_of

ROOT = Path(toolkit.__file__).parents[1]


def refusal(words: Sequence[str], scripts: Mapping[str, Path] = MappingProxyType({})) -> str | None:
    """Why ``python`` would not take these arguments; None where it would.

    Args:
        words: what follows ``python``.
        scripts: those of experiments/ that a page has its reader write, and where they lie.
    """
    if words[:2] == ["-m", "pytest"]:
        return next((f"there is no {word}" for word in words[2:] if "/" in word and not (ROOT / word).exists()), None)
    if words[:1] == ["-m"] and re.fullmatch(r"toolkit\.[\w.]+", "".join(words[1:2])):
        return module_refusal(words[1], words[2:])
    if not words or not re.fullmatch(r"experiments/[\w/]+\.py", words[0]):
        return "neither pytest, nor a module of toolkit, nor a script of experiments/"
    script = scripts.get(words[0], ROOT / words[0])
    if not script.is_file():
        return f"there is no {words[0]}"
    return (benchmark_refusal if "benchmarks" in words[0] else study_refusal)(script, words[1:])


def module_refusal(name: str, arguments: Sequence[str]) -> str | None:
    """Let the module read its settings."""
    try:
        main = importlib.util.find_spec(f"{name}.__main__")
    except ModuleNotFoundError:  # a file has none
        main = None
    try:
        module = importlib.import_module(f"{name}.__main__" if main else name)
    except ImportError:
        return f"there is no {name}"
    readers = [reader for each, reader in vars(module).items() if each in ("read_settings", "read_run")]
    try:
        for read in readers:
            read(arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if readers else f"{name} reads no settings"


def study_refusal(script: Path, arguments: Sequence[str]) -> str | None:
    """Let the script read its settings and build its models, up to where it would conduct the study."""
    module = load(script)
    home = sys.modules[module.main.__module__]  # another script's, where one takes that one's main
    conducting = {name: mock.DEFAULT for name in vars(home) if name.startswith("conduct")}
    with mock.patch.multiple(home, **conducting) as conducted:
        try:
            module.main(arguments)
            for one in conducted.values():
                for called in one.call_args_list:
                    build_models(called.args[0])
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return None if any(one.called for one in conducted.values()) else "it conducted no study"


def build_models(study: Any) -> None:
    """Build every model of the study's grid, without memory: a router's or a pattern's name is read no earlier."""
    for each in getattr(study, "by_context", {"": getattr(study, "base", study)}).values():
        if hasattr(each, "grid"):
            for _, dim, family in each.grid.cells(each.shape.families):
                shapes_of.__wrapped__(each.shape.decoder(family, dim, vocab_size=256))  # not one of earlier names


def benchmark_refusal(script: Path, arguments: Sequence[str]) -> str | None:
    """Let the script parse its arguments, and stop it there; one without a parser is loaded and not run."""
    read, messages = argparse.ArgumentParser.parse_args, io.StringIO()

    def parse_and_stop(parser: argparse.ArgumentParser, *given: Any) -> None:
        read(parser, *given)
        raise _AcceptedError

    if "parse_args(" not in script.read_text():
        return "it takes no arguments" if arguments else None if callable(load(script).main) else "it has no main"
    with (
        mock.patch.object(sys, "argv", [str(script), *arguments]),
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop),
        mock.patch.object(sys, "stderr", messages),
    ):
        try:
            load(script).main()
        except _AcceptedError:
            return None
        except SystemExit:
            return messages.getvalue().strip().split("\n")[-1]
    return "it never parsed its arguments"


class _AcceptedError(Exception):
    """The arguments have been parsed."""


def load(script: Path) -> ModuleType:
    """The script as a module, which finds those beside it as it does when it is run."""
    spec = importlib.util.spec_from_file_location(f"documented_{script.stem}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for it
    with mock.patch.object(sys, "path", [str(script.parent), str(ROOT / "experiments"), *sys.path]):
        spec.loader.exec_module(module)
    return module


def torchrun_refusal(words: Sequence[str]) -> str | None:
    """The script's own answer, as one of the processes that are asked for."""
    if len(words) < 3 or words[0] != "--nproc-per-node":
        return "it must be torchrun --nproc-per-node N script"
    with mock.patch.dict("os.environ", {"WORLD_SIZE": words[1]}):
        return refusal(words[2:])


def make_refusal(words: Sequence[str]) -> str | None:
    """A target that the Makefile does not have, or a variable that it does not know."""
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, _, value = word.partition("=")
        if not re.search(rf"^{name} \?=" if value else rf"^{name}:", makefile, re.MULTILINE) and name != "ARGS":
            return f"the Makefile has no {name}"
    return None


def pip_refusal(words: Sequence[str]) -> str | None:
    """Only ``pip install .[extra]``, with an extra that there is: what is installed is the Makefile's to try."""
    extra = re.fullmatch(r"\.(?:\[(\w+)\])?", words[-1])
    if words[0] != "install" or not extra:
        return "it must be pip install '.' or '.[extra]'"
    known = re.findall(
        r"^(\w+) =$", (ROOT / "setup.cfg").read_text().split("[options.extras_require]")[1], re.MULTILINE
    )
    return None if extra[1] in (None, *known) else f"the extras are {', '.join(known)}"


def tensorboard_refusal(words: Sequence[str]) -> str | None:
    """Only the folder of a study's runs, which may not be there yet."""
    return None if len(words) == 2 and words[0] == "--logdir" else "it must be tensorboard --logdir folder"


CHECKS = {
    "python": refusal,
    "torchrun": torchrun_refusal,
    "make": make_refusal,
    "pip": pip_refusal,
    "tensorboard": tensorboard_refusal,
}
