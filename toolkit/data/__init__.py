"""Text to batches: sources of documents, tokenizers, a tokenised cache and windows addressed by step."""

from toolkit.data.bpe import BPETokenizer
from toolkit.data.corpus import Corpus, CorpusConfig, prepare_corpus
from toolkit.data.documents import Document, Dropped, Reading, Source
from toolkit.data.report import CorpusReport, SplitReport
from toolkit.data.standard_library import StandardLibrary
from toolkit.data.text_files import TextFiles
from toolkit.data.tokenizer import ByteTokenizer, Tokenizer
from toolkit.data.windows import TokenWindows, validation_windows

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "Corpus",
    "CorpusConfig",
    "CorpusReport",
    "Document",
    "Dropped",
    "Reading",
    "Source",
    "SplitReport",
    "StandardLibrary",
    "TextFiles",
    "TokenWindows",
    "Tokenizer",
    "prepare_corpus",
    "validation_windows",
]
