"""One study for each of several context lengths, on the same tokens a step and the same validation text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from toolkit.checks import require
from toolkit.scaling.cli import announce, conclude, make_study, parse_settings, study_parser
from toolkit.scaling.plan import Shape
from toolkit.scaling.results import RunResult
from toolkit.scaling.study import Study


@dataclass(frozen=True)
class ContextStudies:
    """The same study at several contexts.

    Attributes:
        folder: what holds them all, each in ``context<tokens>``, and the report that compares them.
        by_context: the studies, contexts ascending.
    """

    folder: Path
    by_context: Mapping[int, Study]


def read_context_studies(
    arguments: Sequence[str], presets: Path, description: str, shape: type[Shape], studies: Path
) -> tuple[ContextStudies, bool]:
    """The studies that ``arguments`` ask for, and whether only their plans are wanted.

    ``training.context`` is the longest context, ``training.batch_size`` and ``validation_windows`` are its; at a
    shorter one there are as many more of each as leave the tokens of a step, and the tokens scored, what they are.

    Args:
        arguments: of the command line.
        presets: folder of ``<preset>.yaml`` files.
        description: of the experiment, for ``--help``.
        shape: what is compared: the dataclass that ``model`` sets; it has a field ``context``.
        studies: the folder is ``<studies>/<preset>`` where ``--out`` says no other.

    Raises:
        ValueError: naming the setting that cannot be used and what would be right.
    """
    parser = study_parser(description, shape)
    parser.add_argument("--contexts", type=list[int], default=[], help="none: training.context alone")
    parser.link_arguments("training.context", "model.context")
    settings = parse_settings(parser, arguments, presets)
    longest = settings.training.context
    contexts = sorted(settings.contexts or [longest])
    for context in contexts:
        fits = 0 < context <= longest and longest % context == 0
        require(fits, "contexts", context, f"a divisor of training.context={longest}, the longest")
    require(len(set(contexts)) == len(contexts), "contexts", contexts, "named once each")
    block = settings.training.validation_block
    right = f"None, or training.context={longest}: the longest context's windows are cut for the others"
    require(block in (None, longest), "training.validation_block", block, right)
    folder = Path(settings.out) if settings.out else studies / settings.preset
    made = {context: _at(context, settings, parser, folder) for context in contexts}
    return ContextStudies(folder, made), settings.dry_run


def _at(context: int, settings: Namespace, parser: ArgumentParser, folder: Path) -> Study:
    """The study of ``settings``, which are those of the longest context, at ``context``."""
    pieces = settings.training.context // context
    here = settings.clone()
    here.pop("contexts")
    here.training.validation_block = settings.training.context
    here.training.context = here.model.context = context
    here.training.batch_size *= pieces
    here.validation_windows *= pieces
    here.out = str(folder / f"context{context}")
    return make_study(parser, here, folder)


def conduct_contexts(
    studies: ContextStudies,
    dry_run: bool,
    report: Callable[[ContextStudies, Mapping[int, Sequence[RunResult]]], Path],
) -> None:
    """Print every plan and, unless ``dry_run``, train what is not trained yet and write the one report.

    All models' steps are timed before anything is trained, so that no run of ours is beside them.

    Args:
        studies: what to do.
        dry_run: print the plans and leave nothing behind.
        report: writes it and gives its path; called with the finished rows by context, on the main process.
    """
    for study in studies.by_context.values():
        announce(study, dry_run)
    if dry_run:
        return
    rows = {}
    for context, study in studies.by_context.items():
        with study.at_work():
            rows[context] = study.run()
    conclude(lambda: report(studies, rows), studies.folder)
