"""A whole study of context extension: train at L, read longer by every method, as is and after the same fine-tune."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from toolkit.checks import require_positive
from toolkit.data import Corpus, CorpusConfig, StandardLibrary, TextFiles, long_files, prepare_corpus
from toolkit.data.synthetic import Passkey
from toolkit.models import Decoder, DecoderConfig
from toolkit.parallel import ParallelConfig
from toolkit.scaling.extension.evaluation import SLIDING, EvaluationConfig, evaluate, text_blocks
from toolkit.scaling.extension.methods import Method
from toolkit.scaling.extension.plan import (
    ExtensionConfig,
    ExtensionModel,
    PlannedStage,
    passkeys,
    plan_base,
    plan_tuning,
    scaled_models,
)
from toolkit.scaling.extension.table import AS_IS, BASE, TUNED, Measurement, MeasurementTable
from toolkit.scaling.folder import StudyFolder
from toolkit.training.checkpoints import read_checkpoint
from toolkit.training.config import TrainingConfig
from toolkit.training.precision import resolve_precision

SECONDS = "evaluation_seconds"


@dataclass(frozen=True)
class ExtensionStudy:
    """Everything a study is made of; see the dataclasses of its parts.

    Attributes:
        corpus: the text.
        model: the decoder.
        config: what is compared.
        evaluation: how much each length is scored on.
        training: the base run; its ``context`` is L. The plan sets the seeds and the fine-tune.
        parallel: one device.
        folder: where it lives.
        cache: folder of tokenised corpora.
        threads: CPU threads.
        validation_windows: of the base run's validation while it trains, of L tokens.
        settings: everything that determines the results, as YAML.
    """

    corpus: CorpusConfig
    model: ExtensionModel
    config: ExtensionConfig
    evaluation: EvaluationConfig
    training: TrainingConfig
    parallel: ParallelConfig
    folder: StudyFolder
    cache: Path
    threads: int
    validation_windows: int
    settings: str

    def __post_init__(self) -> None:
        require_positive(threads=self.threads, validation_windows=self.validation_windows)

    @property
    def length(self) -> int:
        """L, tokens."""
        return self.training.context

    @property
    def lengths(self) -> list[int]:
        """Of the evaluation, ascending, tokens."""
        return [self.length * multiple for multiple in self.config.multiples]

    @cached_property
    def prepared(self) -> Corpus:
        """The tokenised corpus."""
        return prepare_corpus(self.corpus, self.cache)

    @cached_property
    def blocks(self) -> Tensor:
        """Stretches of whole validation files, (count, longest + 1)."""
        corpus = self.corpus
        source = (
            TextFiles(tuple(corpus.paths), corpus.jsonl_field) if corpus.paths else StandardLibrary(corpus.stdlib_tests)
        )
        files = long_files(self.evaluation.min_bytes, corpus.validation_share, source)
        return text_blocks(files, self.prepared.tokenizer, self.lengths[-1], self.evaluation.blocks)

    @property
    def vocab_size(self) -> int:
        """Ids of the text and of the passkeys after them."""
        return passkeys(self.config, self.length, self.prepared.tokenizer.vocab_size).vocab_size

    @cached_property
    def models(self) -> list[tuple[Method, DecoderConfig]]:
        """Every method's decoder."""
        return scaled_models(self.model, self.config, self.length, self.vocab_size)

    @cached_property
    def bases(self) -> list[PlannedStage]:
        """The base runs, one a seed."""
        return [plan_base(self.model, self.vocab_size, self.training, seed) for seed in range(self.config.seeds)]

    def tunings(self, base: PlannedStage) -> list[PlannedStage]:
        """The fine-tunes that begin from ``base``."""
        return plan_tuning(base, self.models, self.config)

    @property
    def table(self) -> MeasurementTable:
        """One line for each figure."""
        return MeasurementTable(self.folder.path / "results.csv")

    def claim_folder(self) -> None:
        """Make the folder this study's, once it is sure that it can be planned and before anything long begins.

        Raises:
            ValueError: if it holds another study or cannot be written.
        """
        for base in self.bases:
            self.tunings(base)
        device = self.parallel.device
        facts = {
            "corpus_digest": self.prepared.digest,
            "precision": resolve_precision(self.training.precision, device),
            "device": device,
            "blocks": tuple(self.blocks.shape),
        }
        self.folder.claim(
            self.settings + "# came to\n" + "".join(f"# {name}: {value}\n" for name, value in facts.items())
        )

    def run(self, say: Callable[[str], None]) -> list[Measurement]:
        """Train and evaluate whatever the table does not hold yet; every figure there is.

        A killed study goes on from its last checkpoint and its last evaluated length.
        """
        torch.set_num_threads(self.threads)
        torch.set_flush_denormal(True)  # attention weights near 0 would otherwise slow a CPU's products
        for base in self.bases:
            self._train(base, None, say)
            weights = self._weights(base)
            for method, model in self.models:
                self._evaluate(base.seed, method.name, AS_IS, model, weights, say)
            for stage in self.tunings(base):
                self._train(stage, weights, say)
                self._evaluate(base.seed, stage.method.name, TUNED, stage.model, self._weights(stage), say)
        return self.table.read()

    def _train(self, stage: PlannedStage, initial: dict[str, Tensor] | None, say: Callable[[str], None]) -> None:
        """Train one stage in its folder, from where it is, unless the table says that it ended."""
        from toolkit.training.checkpoints.store import CheckpointStore
        from toolkit.training.run import fit

        kind, name, context = BASE if stage.base else TUNED, stage.method.name, stage.training.context
        if self.table.has(stage.seed, name, kind, context, "training_flops"):
            return
        say(f"{stage.name}: {stage.training.steps:,} steps of {context} tokens, {stage.flops:.3g} FLOPs")
        folder, load = self.folder.run(stage.name), os.getloadavg()[0]
        if folder.exists() and not any(path.exists() for path in CheckpointStore(folder).own):
            shutil.rmtree(folder)  # cut off before its first checkpoint: nothing in it can be gone on from
        fitted = fit(
            stage.model, stage.training, self.prepared, folder, stage.budget,
            parallel=self.parallel,
            validation_count=max(1, self.validation_windows * self.length // context),
            mixture=passkeys(self.config, context, self.prepared.tokenizer.vocab_size),
            initial=initial,
            hparams={"method": name, "stage": kind, "seed": stage.seed},
        )  # fmt: skip
        figures = {"training_flops": fitted.flops, "training_seconds": fitted.seconds, "load_average": load}
        figures |= {"training_tokens": fitted.tokens, "validation_bits_per_byte": fitted.bits_per_byte}
        group = [
            Measurement(stage.seed, name, kind, context, metric, "", float(value), fitted.steps)
            for metric, value in figures.items()
        ]
        self.table.extend(group)

    def _weights(self, stage: PlannedStage) -> dict[str, Tensor]:
        """The decoder's parameters as a finished stage left them."""
        saved = read_checkpoint(self.folder.run(stage.name) / "checkpoints" / "last.ckpt")
        head = "decoder."
        return {name[len(head) :]: value for name, value in saved["state_dict"].items() if name.startswith(head)}

    def _evaluate(
        self,
        seed: int,
        method: str,
        stage: str,
        model: DecoderConfig,
        weights: dict[str, Tensor],
        say: Callable[[str], None],
    ) -> None:
        todo = [length for length in self.lengths if not self.table.has(seed, method, stage, length, SLIDING)]
        if not todo:
            return
        decoder = Decoder(model)
        decoder.load_state_dict(weights)
        for length, group in self._scores(decoder, todo):
            self.table.extend([Measurement(seed, method, stage, length, *one) for one in group])
            sliding = next(value for metric, _, value, _ in group if metric == SLIDING)
            keys = [value for metric, _, value, _ in group if metric == "passkey"]
            say(f"{method}, {stage}, {length}: {sliding:.3f} bits per byte, passkey {sum(keys) / len(keys):.2f}")

    def _scores(self, decoder: Decoder, lengths: list[int]) -> Iterator[tuple[int, list[tuple[str, str, float, int]]]]:
        tokenizer = self.prepared.tokenizer
        sizes, keys = (
            torch.from_numpy(tokenizer.byte_lengths),
            Passkey(digits=self.config.digits, words=self.config.words),
        )
        device = "cuda" if self.parallel.device == "gpu" else "cpu"
        mixed = resolve_precision(self.training.precision, self.parallel.device) == "bf16-mixed"
        decoder.to(device)
        for length in lengths:
            started = time.perf_counter()
            with torch.autocast(device, torch.bfloat16, enabled=mixed):
                scores = evaluate(
                    decoder, length, self.length, self.blocks, sizes, keys, tokenizer.vocab_size, self.evaluation
                )
            seconds = time.perf_counter() - started
            yield length, [*(tuple(asdict(one).values()) for one in scores), (SECONDS, "", seconds, 1)]
