"""Attention whose pattern depends on the content: each query chooses blocks of keys."""

from toolkit.attention.selection.moba import MoBA, moba
from toolkit.attention.selection.native_sparse import NativeSparse, native_sparse
from toolkit.attention.selection.text import parse_sparsity

__all__ = ["MoBA", "NativeSparse", "moba", "native_sparse", "parse_sparsity"]
