"""What layers are told of a batch's tokens besides their vectors: whose they are, where they stand, what is padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.attention import Documents
from toolkit.attention.patterns.documents import PADDING
from toolkit.checks import require


@dataclass(frozen=True, eq=False)
class Sequences:
    """The sequences that a batch's rows hold: one a row, padded or not, or several documents packed.

    Made once for a forward, by :meth:`of`, and handed to every layer: attention is then planned once for each pattern,
    however many layers share it.

    Attributes:
        token_ids: int64 (batch, length), ids in the vocabulary, for routers that hash them; 0 for padding.
        valid: bool (batch, length), False for padding; None: there is none.
        sequence_ids: int64 (batch, length), 0, 1, ... in the order of tokens, rows one after another, so that no two
            rows share one; None: each row is one sequence.
        positions: int64 (batch, length), what the rotary embedding turns by; None: 0, 1, ..., or the next of a cache.
        documents: whose tokens attention keeps apart, padding of none; None: the pattern sees the row as it is.
    """

    token_ids: Tensor | None = None
    valid: Tensor | None = None
    sequence_ids: Tensor | None = None
    positions: Tensor | None = None
    documents: Documents | None = None

    @classmethod
    def of(
        cls, token_ids: Tensor | None = None, *, valid: Tensor | None = None, sequence_ids: Tensor | None = None
    ) -> Sequences:
        """From what a user knows; positions restart in each document, and a padded row's start at its first token.

        Args:
            token_ids: int64 (batch, length); of padding they may be any numbers.
            valid: bool (batch, length), False for padding, on either side of a row or between documents.
            sequence_ids: int64 (batch, length), the document each token is of, -1 for padding; the tokens of one stand
                side by side. Padding is what either of the two names. Ids of different rows have nothing to do with
                each other.

        Raises:
            ValueError: if shapes differ or a dtype is another, an id is below -1, or there is padding, or another
                document, inside of one.

        >>> Sequences.of(sequence_ids=torch.tensor([[3, 3, 1, 1, 1, -1]])).positions
        tensor([[0, 1, 0, 1, 2, 0]])
        """
        given = {"token_ids": token_ids, "valid": valid, "sequence_ids": sequence_ids}
        _require_tables(given, {"valid": torch.bool, "sequence_ids": torch.int64})
        tables = [table for table in (valid, sequence_ids) if table is not None]
        if not any(table.numel() for table in tables):
            return cls(token_ids)
        with torch.inference_mode(False):  # plans are kept for tensors that tell when they are changed
            ids = _document_ids(valid, sequence_ids)
            begins = torch.ones_like(ids, dtype=torch.bool)
            begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
            place = torch.arange(ids.shape[1], device=ids.device)
            positions = place - torch.where(begins, place, 0).cummax(dim=1).values
            number = begins.flatten().cumsum(0).view(ids.shape) - 1
        documents, name = Documents(ids), "valid" if sequence_ids is None else "sequence_ids"
        right = "1: the tokens of a document stand side by side, without padding or another's between them"
        require(documents.most == 1, f"{name}: stretches a document lies in", documents.most, right)
        valid = ids != PADDING
        if token_ids is not None:
            token_ids = token_ids.masked_fill(~valid, 0)
        return cls(token_ids, valid, None if sequence_ids is None else number, positions, documents)

    @property
    def routed(self) -> dict[str, Tensor | None]:
        """What a MoE asks for, by keyword."""
        return {"token_ids": self.token_ids, "sequence_ids": self.sequence_ids, "valid": self.valid}

    @property
    def named(self) -> str:
        """The argument by which documents were given, for what is refused."""
        return "valid" if self.sequence_ids is None else "sequence_ids"

    def require_fit(self, x: Tensor) -> None:
        """Refuse x (batch, length, dim) of another batch or length.

        Raises:
            ValueError: naming what is of another shape.
        """
        for name, table in {**self.routed, "positions": self.positions}.items():
            shape = None if table is None else tuple(table.shape)
            require(shape in (None, x.shape[:2]), f"{name}.shape", shape, f"x's (batch, length) = {tuple(x.shape[:2])}")

    def at(self, index: Tensor, valid: Tensor | None, start: int = 0) -> Sequences:
        """The same of the tokens that a layer picks: ``index`` int64 (batch, n), ascending where ``valid`` (batch, n).

        What is not valid stands at the end of its row, where attention that looks back only does not see it; so only
        packed documents have to be told to it. The first token stands at ``start`` where there are no positions.
        """
        token_ids, numbers, positions = (
            None if table is None else table.gather(1, index)
            for table in (self.token_ids, self.sequence_ids, self.positions)
        )
        documents = None
        if numbers is not None:
            with torch.inference_mode(False):
                documents = Documents(numbers.clone() if valid is None else torch.where(valid, numbers, PADDING))
        return Sequences(token_ids, valid, numbers, start + index if positions is None else positions, documents)


def _document_ids(valid: Tensor | None, sequence_ids: Tensor | None) -> Tensor:
    """int64 (batch, length), -1 for padding, which one of the two or both name."""
    if sequence_ids is None:
        assert valid is not None, "one is given"
        return torch.where(valid, 0, PADDING)
    lowest = int(sequence_ids.min()) if sequence_ids.numel() else 0
    require(lowest >= PADDING, "sequence_ids", lowest, f"0 or more, or {PADDING} for padding")
    return sequence_ids.clone() if valid is None else torch.where(valid, sequence_ids, PADDING)


def _require_tables(given: dict[str, Tensor | None], dtypes: dict[str, torch.dtype]) -> None:
    """Each is (batch, length), the same as the others, of its dtype."""
    tables = {name: table for name, table in given.items() if table is not None}
    for name, table in tables.items():
        expected = next(iter(tables.values())).shape
        fits = table.ndim == 2 and table.shape == expected
        right = f"(batch, length) = {tuple(expected)}" if len(expected) == 2 else "(batch, length)"
        require(fits, f"{name}.shape", tuple(table.shape), right)
        dtype = dtypes.get(name, table.dtype)
        require(table.dtype == dtype, f"{name}.dtype", table.dtype, str(dtype))
