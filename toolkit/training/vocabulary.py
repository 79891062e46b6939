"""The rows of a model's vocabulary: the text's tokens first, then those of tasks."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.checks import require
from toolkit.data import Corpus, TaskMixture
from toolkit.models import DecoderConfig


def byte_lengths(corpus: Corpus, model: DecoderConfig) -> Tensor:
    """(vocab_size,): bytes of text that each token stands for; 0 for those of tasks, which come after the text's."""
    lengths = torch.from_numpy(corpus.tokenizer.byte_lengths)
    known = len(lengths)
    require(model.vocab_size >= known, "model.vocab_size", model.vocab_size, f"at least the tokenizer's {known}")
    return torch.cat([lengths, lengths.new_zeros(model.vocab_size - known)])


def require_task_rows(mixture: TaskMixture, corpus: Corpus, model: DecoderConfig) -> None:
    """The task's ids come after the text's, and the model has a row for each."""
    text = len(corpus.tokenizer.byte_lengths)
    require(mixture.first_id >= text, "mixture.first_id", mixture.first_id, f"at least the tokenizer's {text} ids")
    fits = mixture.vocab_size <= model.vocab_size
    require(fits, "model.vocab_size", model.vocab_size, f"at least the mixture's {mixture.vocab_size}")
