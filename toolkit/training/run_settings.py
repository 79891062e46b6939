"""The settings of one run as a file: what ``fit`` leaves in a run's folder, or the same written by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
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
    def tokens(self) -> float:
        """Tokens that it is trained on: those of its steps, or fewer where the budget ends it."""
        planned = float(self.training.steps * self.training.tokens_per_step)
        if self.budget is None:
            return planned
        return min(planned, self.budget / cost(self.model, self.training.context).training_flops["exact"])

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


def read_run_settings(path: Path) -> RunSettings:
    """The settings in a YAML or JSON file, or in a run's folder.

    The file has ``model`` (as :meth:`DecoderConfig.to_dict` gives it) and ``training``; ``data``, ``parallel``,
    ``validation_windows`` and ``budget`` where they are not the defaults. A folder's says its text too, unless that was
    not read by :func:`toolkit.data.prepare_corpus`.

    Raises:
        ValueError: naming the setting that is missing, unknown or out of its range.
    """
    path = path / RUN_FILE if path.is_dir() else path
    require(path.is_file(), "settings", str(path), f"a YAML file of a run's settings, or a folder with a {RUN_FILE}")
    values = _read(path)
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
