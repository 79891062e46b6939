"""Which (query, key) pairs an attention sees, as small immutable objects joined by ``&``, ``|`` and ``~``."""

from toolkit.attention.patterns.bands import Causal, Chunked, PrefixLM, SlidingWindow, Window
from toolkit.attention.patterns.blocks import BlockMask, KeyRanges
from toolkit.attention.patterns.combinations import And, Not, Or
from toolkit.attention.patterns.documents import Documents
from toolkit.attention.patterns.heads import PerHead
from toolkit.attention.patterns.pattern import Full, Pattern, query_positions
from toolkit.attention.patterns.per_document import PerDocument
from toolkit.attention.patterns.random_blocks import RandomBlocks
from toolkit.attention.patterns.scattered import DilatedWindow, Fixed, Strided
from toolkit.attention.patterns.tokens import GlobalTokens, Sinks

__all__ = [
    "And",
    "BlockMask",
    "Causal",
    "Chunked",
    "DilatedWindow",
    "Documents",
    "Fixed",
    "Full",
    "GlobalTokens",
    "KeyRanges",
    "Not",
    "Or",
    "Pattern",
    "PerDocument",
    "PerHead",
    "PrefixLM",
    "RandomBlocks",
    "Sinks",
    "SlidingWindow",
    "Strided",
    "Window",
    "query_positions",
]
