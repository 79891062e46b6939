"""The settings of one run as a file: what ``fit`` leaves in a run's folder, or the same written by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]

from toolkit.checks import require, require_positive
from toolkit.compute import cost
from toolkit.data import Corpus, CorpusConfig, prepare_corpus
from toolkit.models import DecoderConfig
from toolkit.parallel import ParallelConfig
from toolkit.training.config import TrainingConfig
from toolkit.training.vocabulary import byte_lengths

RUN_FILE = "run.json"
"""What ``fit`` writes into a run's folder."""

WRITTEN = ("model", "data", "training", "parallel", "validation_windows", "budget", "precision")
"""What a file may say of a run, model and training at least."""

RECORDED = ("initial", "mixture", "corpus", "branch", "code", "torch")
"""What a run's folder says besides."""

Made = TypeVar("Made", CorpusConfig, TrainingConfig, ParallelConfig)


@dataclass(frozen=True)
class RunSettings:
    """One run, as it is meant.

    Attributes:
        model: the decoder.
        data: the text.
        training: how it is trained.
        parallel: processes and what each holds.
        validation_windows: windows of validation.
        budget: training FLOPs (``exact``) that end the run before its last step; None for none.
        digest: of the corpus that the run had; None where it has not begun.
        beginning: whether it began with other weights than random ones.
        mixture: whether rows of a task are mixed into the text.

    Raises:
        ValueError: if a number is not positive.
    """

    model: DecoderConfig
    data: CorpusConfig
    training: TrainingConfig
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    validation_windows: int = 256
    budget: float | None = None
    digest: str | None = None
    beginning: bool = False
    mixture: bool = False

    def __post_init__(self) -> None:
        require_positive(validation_windows=self.validation_windows)
        require(self.budget is None or self.budget > 0, "budget", self.budget, "positive, or None")

    @property
    def flops(self) -> float:
        """Training FLOPs (``exact``) that end it: the budget, or those of all its steps."""
        if self.budget is not None:
            return self.budget
        return cost(self.model, self.training.context).training_flops["exact"] * self._planned

    @property
    def _planned(self) -> float:
        """Tokens of all its steps."""
        return float(self.training.steps * self.training.tokens_per_step)

    @property
    def tokens(self) -> float:
        """Tokens that it is trained on: those of its steps, or fewer where the budget ends it."""
        return min(self._planned, self.flops / cost(self.model, self.training.context).training_flops["exact"])

    def corpus(self, cache: Path) -> Corpus:
        """The text, tokenised in the folder ``cache``.

        Raises:
            ValueError: if it is not what the run had, or the model has no row for each of its tokens.
        """
        corpus = prepare_corpus(self.data, cache)
        same = self.digest in (None, corpus.digest)
        require(same, "data", self.data.paths or "the standard library", f"the run's text, of hash {self.digest}")
        byte_lengths(corpus, self.model)  # refuses a model without a row for each token
        return corpus


def read_run_settings(path: Path, changes: Mapping[str, Any] | None = None) -> RunSettings:
    """The settings in a YAML or JSON file, or in a run's folder, with ``changes`` by their names on top.

    The file has ``model`` (as :meth:`DecoderConfig.to_dict` gives it) and ``training``; ``data``, ``parallel``,
    ``validation_windows`` and ``budget`` where they are not the defaults. A folder's says its text too, unless that was
    not read by :func:`toolkit.data.prepare_corpus`.

    Args:
        path: of the file or the folder.
        changes: values by dotted names: ``{"training.steps": 20, "parallel.shard": 2}``.

    Raises:
        ValueError: naming the setting that is missing, unknown or out of its range.
    """
    path = path / RUN_FILE if path.is_dir() else path
    require(path.is_file(), "settings", str(path), f"a YAML file of a run's settings, or a folder with a {RUN_FILE}")
    values = _changed(_read(path), changes or {})
    _require_known(values, "settings", (*WRITTEN, *RECORDED))
    for name in ("model", "training"):
        require(name in values, name, None, f"given in {path}")
    readable = values.get("data") is not None or "corpus" not in values
    require(readable, "data", None, f"given in {path}, as the run had a text that these settings do not tell")
    training = _made(TrainingConfig, "training", values["training"])
    if values.get("precision") is not None:  # what "auto" came to where the run was trained
        training = replace(training, precision=values["precision"])
    return RunSettings(
        model=_model(values["model"]),
        data=_made(CorpusConfig, "data", values.get("data") or {}),
        training=training,
        parallel=_made(ParallelConfig, "parallel", values.get("parallel", {})),
        validation_windows=values.get("validation_windows", 256),
        budget=values.get("budget"),
        digest=values.get("corpus"),
        beginning=values.get("initial") is not None,
        mixture=values.get("mixture") is not None,
    )


def _read(path: Path) -> dict[str, Any]:
    """The mapping that the file holds."""
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else yaml.load(text, _Loader)
    except (json.JSONDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"settings={str(path)!r}: it must be YAML or JSON ({error})") from None
    require(isinstance(values, dict), "settings", str(path), "a mapping with model and training")
    return dict(values)


def changes_of(arguments: Sequence[str]) -> dict[str, Any]:
    """Settings as a command line gives them, by their dotted names; values are YAML's.

    Raises:
        ValueError: naming what is no setting, or has no value or one that is not YAML.

    >>> changes_of(["--training.steps", "20", "--training.learning_rate=1e-3", "--data.paths", "[text, more]"])
    {'training.steps': 20, 'training.learning_rate': 0.001, 'data.paths': ['text', 'more']}
    """
    changes, words = dict[str, Any](), iter(arguments)
    for word in words:
        name, sign, value = word.removeprefix("--").partition("=")
        required = f"--{' or --'.join(WRITTEN)}, or a part of one as --training.steps, and a value"
        known = word.startswith("--") and name.split(".")[0] in WRITTEN
        require(known, "setting", word, required)
        given = value if sign else next(words, None)
        require(given is not None, "setting", word, required)
        changes[name] = _yaml(str(given), name)
    return changes


def _changed(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with the ones of ``changes``, whose names lead into mappings."""
    for name, value in changes.items():
        *sections, last = name.split(".")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
            require(isinstance(inner, dict), name, value, f"no part of {section}, which is {inner!r}")
        inner[last] = value
    return values


def _yaml(text: str, name: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{name}={text!r}: it must be YAML ({error})") from None


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: 1e-3 is one."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), "-+.0123456789"
)


def _model(values: Any) -> DecoderConfig:
    require(isinstance(values, dict), "model", values, "a mapping, as DecoderConfig.to_dict gives")
    return DecoderConfig.from_dict(values)


def _made(kind: type[Made], name: str, values: Any) -> Made:
    """The dataclass of a section; lists become tuples."""
    require(isinstance(values, Mapping), name, values, "a mapping")
    _require_known(values, name, tuple(each.name for each in fields(kind)))
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(f"{name}={dict(values)!r}: it must be a {kind.__name__}'s settings ({error})") from None


def _require_known(values: Mapping[str, Any], name: str, known: tuple[str, ...]) -> None:
    unknown = sorted(set(values) - set(known))
    require(not unknown, name, unknown, f"of {', '.join(known)}")
