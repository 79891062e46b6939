"""What a model of so many parameters costs, and how it can be spread over so many GPUs.

python -m toolkit.scaling.plan --params 7e9 --experts 64 --top-k 8 --seq 131072 --gpus 64 --gpu-memory 80

Layouts that fit are listed with what the fullest device keeps ("GB", and its "largest" part) and what a device sends in
a step ("GB sent", what it is "mostly" for) and for each token of the global batch ("B/token"): those with the fewest
bytes a token first, then those that need least memory. A layout that shares tokens or layers takes fewer sequences in a
step, so that bytes a step alone would not compare them. How fast links are, what is sent while something else is
computed, and how long the stages of a pipeline wait for each other, is not in it.

Formulas from shapes alone: no GPU is needed, and none was measured.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from toolkit.compute import cost
from toolkit.models import DecoderConfig
from toolkit.scaling.cli import PIPED_WIDTH, run_experiment
from toolkit.scaling.plan.layouts import (
    ORDER,
    RULE,
    TOKENS_PER_PARAMETER,
    Layout,
    Run,
    find_decoder,
    fitting,
    layouts,
    optimal_tokens,
)

SHOWN = ("data", "shard", "tensor", "context", "expert", "pipeline")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists every setting")


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The module's text as it stands, and every setting's default."""


def read_run(arguments: Sequence[str]) -> tuple[Run, int]:
    """The run that ``arguments`` ask for, and how many layouts are to be shown.

    Raises:
        ValueError: naming the setting that cannot be used.
    """
    settings = vars(build_parser().parse_args(list(arguments)))
    return Run(**{field.name: settings[field.name] for field in fields(Run)}), settings["show"]


def build_parser() -> argparse.ArgumentParser:
    """An option for every field of ``Run``, described as it is there, and ``--show``."""
    parser = _Parser("python -m toolkit.scaling.plan", description=__doc__, formatter_class=_Help, allow_abbrev=False)
    kinds: dict[Any, Callable[[str], Any]] = {"float": float, "int": int, "Recompute": _recompute}
    told = _described(Run)
    for field in fields(Run):
        needed = field.default is MISSING
        given = {"required": True, "default": argparse.SUPPRESS} if needed else {"default": field.default}
        option, kind = f"--{field.name.replace('_', '-')}", kinds.get(field.type, str)
        parser.add_argument(option, type=kind, help=told[field.name], metavar=field.name.upper(), **given)
    parser.add_argument("--show", type=int, default=12, help="layouts to print, of those that fit")
    return parser


def _described(kind: type) -> dict[str, str]:
    """Of a class, what its docstring says of each attribute, in one line."""
    text = inspect.cleandoc(kind.__doc__ or "").split("Attributes:\n")[1].split("\n\n")[0]
    found = re.findall(r"^    (\w+): (.+(?:\n        .+)*)", text, re.MULTILINE)
    return {name: " ".join(words.split()).replace("%", "%%") for name, words in found}


def _recompute(text: str) -> str | int:
    return int(text) if text.lstrip("-").isdigit() else text


def main(arguments: Sequence[str]) -> None:
    """Print the plan."""
    run, show = read_run(arguments)
    console, config = Console(width=None if Console().is_terminal else PIPED_WIDTH), find_decoder(run)
    _print_model(console, config, run)
    found = layouts(config, run)
    fit = fitting(found, run)
    best = fit[0] if fit else min(found, key=lambda layout: layout.memory.training)
    console.print(f"\n{len(fit)} of {len(found)} layouts fit into {run.room / 1e9:.1f} GB. Order: {ORDER}.")
    if fit:
        console.print(_table(fit[:show]))
    else:
        console.print("None fits: recompute='selective' or 'full', more GPUs, or a shorter sequence would need less.")
    _print_memory(console, best, "the first" if fit else "the one that needs least")


def _print_model(console: Console, config: DecoderConfig, run: Run) -> None:
    price, attention = cost(config, run.seq), config.blocks[0].attention
    tokens, training = optimal_tokens(price), price.training_flops["exact"]
    lines = (
        f"Model: {price.total_parameters:,} parameters, {price.total_active_parameters:,} active; width {config.dim}, "
        f"{len(config.blocks)} layers, {attention.heads} heads, {attention.kv_heads} key heads, "
        f"hidden {config.blocks[0].feed_forward.hidden_dim}, {run.experts} experts.",
        f"Rule: {RULE}.",
        f"FLOPs per token at {run.seq:,} tokens: {training:.4g} in training, "
        f"{price.forward_flops['exact']:.4g} forward (exact convention: products over visible pairs).",
        f"Compute-optimal: {tokens:.4g} tokens ({TOKENS_PER_PARAMETER} an active parameter, Hoffmann et al. 2022), "
        f"{tokens * training:.4g} FLOPs in all.",
    )
    for line in lines:
        console.print(line, highlight=False)


def _table(found: list[Layout]) -> Table:
    table = Table()
    for name in (*SHOWN, "GB", "largest", "GB sent", "B/token", "mostly"):
        table.add_column(name, justify="right")
    for layout in found:
        sizes = [str(getattr(layout.parallel, name)) for name in SHOWN]
        sent = layout.traffic
        told = f"{sent.total / 1e9:.2f}", f"{layout.sent_per_token:,.0f}", sent.dominant if sent.total else "-"
        table.add_row(*sizes, f"{layout.memory.training / 1e9:.1f}", layout.memory.dominant, *told)
    return table


def _print_memory(console: Console, layout: Layout, which: str) -> None:
    kept, sizes = layout.memory, layout.parallel
    names = [f"{name} {getattr(sizes, name)}" for name in SHOWN if getattr(sizes, name) > 1] or ["one GPU"]
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in kept.components.items())
    console.print(f"A device of {which} ({' * '.join(names)}), in GB: {parts}.", highlight=False)
    share = kept.components[kept.dominant] / kept.training
    sent = (
        ", ".join(f"{name} {size / 1e9:.2f}" for name, size in layout.traffic.components.items() if size) or "nothing"
    )
    console.print(f"It sends in a step of {layout.tokens:,} tokens, in GB: {sent}.", highlight=False)
    console.print(f"{kept.dominant} dominate with {share:.0%}; decoding's cache: {kept.kv_cache / 1e9:.2f} GB.")


if __name__ == "__main__":
    run_experiment(main)
