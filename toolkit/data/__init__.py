"""Text to batches: sources of documents, tokenizers, a tokenised cache and windows addressed by step.

Synthetic long-context tasks are in :mod:`toolkit.data.synthetic`, measures over length in
:mod:`toolkit.data.evaluation`.
"""

from toolkit.data.bpe import BPETokenizer
from toolkit.data.corpus import Corpus, CorpusConfig, prepare_corpus
from toolkit.data.documents import Document, Dropped, Reading, Source
from toolkit.data.evaluation import NLL, PositionLoss, effective_length, loss_by_position, sliding_perplexity
from toolkit.data.examples import Examples, as_examples
from toolkit.data.long_files import LongFiles, long_files
from toolkit.data.mixture import TaskMixture
from toolkit.data.report import CorpusReport, SplitReport
from toolkit.data.standard_library import StandardLibrary
from toolkit.data.synthetic import TASKS, Task, TaskBatch, TaskScore, exact_match, parse_task
from toolkit.data.text_files import TextFiles
from toolkit.data.tokenizer import ByteTokenizer, Tokenizer
from toolkit.data.windows import TokenWindows, validation_windows

__all__ = [
    "NLL",
    "TASKS",
    "BPETokenizer",
    "ByteTokenizer",
    "Corpus",
    "CorpusConfig",
    "CorpusReport",
    "Document",
    "Dropped",
    "Examples",
    "LongFiles",
    "PositionLoss",
    "Reading",
    "Source",
    "SplitReport",
    "StandardLibrary",
    "Task",
    "TaskBatch",
    "TaskMixture",
    "TaskScore",
    "TextFiles",
    "TokenWindows",
    "Tokenizer",
    "as_examples",
    "effective_length",
    "exact_match",
    "long_files",
    "loss_by_position",
    "parse_task",
    "prepare_corpus",
    "sliding_perplexity",
    "validation_windows",
]
