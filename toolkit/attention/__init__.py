"""Attention that skips work: patterns, the blocks they visit, and the functions that compute them.

>>> import torch
>>> from toolkit.attention import attention, Causal, Sinks, SlidingWindow
>>> q, k, v = torch.randn(3, 1, 4, 1024, 32)
>>> out = attention(q, k, v, Causal() & (SlidingWindow(512) | Sinks(4)))
"""

from toolkit.attention.cache import KeyValueCache, RollingCache, attend_cached
from toolkit.attention.cost import attention_work
from toolkit.attention.interface import attention
from toolkit.attention.merge import add_sink, merge
from toolkit.attention.parse import parse_pattern, register_pattern
from toolkit.attention.patterns import (
    BlockMask,
    Causal,
    Chunked,
    DilatedWindow,
    Documents,
    Fixed,
    Full,
    GlobalTokens,
    KeyRanges,
    Pattern,
    PerDocument,
    PerHead,
    PrefixLM,
    RandomBlocks,
    Sinks,
    SlidingWindow,
    Strided,
    Window,
)

__all__ = [
    "BlockMask",
    "Causal",
    "Chunked",
    "DilatedWindow",
    "Documents",
    "Fixed",
    "Full",
    "GlobalTokens",
    "KeyRanges",
    "KeyValueCache",
    "Pattern",
    "PerDocument",
    "PerHead",
    "PrefixLM",
    "RandomBlocks",
    "RollingCache",
    "Sinks",
    "SlidingWindow",
    "Strided",
    "Window",
    "add_sink",
    "attend_cached",
    "attention",
    "attention_work",
    "merge",
    "parse_pattern",
    "register_pattern",
]
