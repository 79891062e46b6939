"""Attention that skips work: patterns, the blocks they visit, and the functions that compute them.

>>> import torch
>>> from toolkit.attention import attention, Causal, SlidingWindow
>>> q, k, v = torch.randn(3, 1, 4, 1024, 32)
>>> out = attention(q, k, v, Causal() & SlidingWindow(512))
"""

from toolkit.attention.cache import KeyValueCache
from toolkit.attention.cost import attention_work
from toolkit.attention.interface import attention
from toolkit.attention.parse import parse_pattern
from toolkit.attention.patterns import Causal, Full, Pattern, SlidingWindow, Window

__all__ = [
    "Causal",
    "Full",
    "KeyValueCache",
    "Pattern",
    "SlidingWindow",
    "Window",
    "attention",
    "attention_work",
    "parse_pattern",
]
