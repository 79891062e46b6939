"""What layers are told of the tokens of a part of each sequence."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from toolkit.checks import require
from toolkit.layers import Sequences
from toolkit.parallel.context.split import join_sequence, sequence_positions, split_sequence


def part_of_sequences(
    input_ids: Tensor,
    group: dist.ProcessGroup,
    layout: str,
    *,
    valid: Tensor | None = None,
    sequence_ids: Tensor | None = None,
) -> Sequences:
    """This rank's part of the sequences that the group's ranks hold together.

    Args:
        input_ids, valid, sequence_ids: this rank's parts of what :meth:`Sequences.of` takes of whole rows.
        group: the ranks.
        layout: ``"zigzag"`` or ``"contiguous"``.

    Returns:
        Positions in the whole row, or in the whole document; ``documents`` of whole rows, as every rank's pattern needs
        them: of ``valid`` and ``sequence_ids`` each rank sends its part to all, the token ids stay where they are.

    Raises:
        ValueError: as :meth:`Sequences.of`, about whole rows; if the parts do not fit the layout.
    """
    batch, length = input_ids.shape
    given = {"valid": valid, "sequence_ids": sequence_ids}
    for name, table in given.items():
        shape = None if table is None else tuple(table.shape)
        require(shape in (None, input_ids.shape), f"{name}.shape", shape, f"input_ids', {tuple(input_ids.shape)}")
    if valid is None and sequence_ids is None:
        positions = sequence_positions(length * group.size(), group, layout, input_ids.device)
        return Sequences(input_ids, positions=positions.expand(batch, -1))
    whole = Sequences.of(**{name: None if x is None else join_sequence(x, group, layout) for name, x in given.items()})
    real, numbers, places = (
        None if table is None else split_sequence(table, group, layout)
        for table in (whole.valid, whole.sequence_ids, whole.positions)
    )
    token_ids = input_ids if real is None else input_ids.masked_fill(~real, 0)
    return Sequences(token_ids, real, numbers, places, whole.documents)


def require_even_padding(valid: Tensor, group: dist.ProcessGroup) -> None:
    """Refuse parts with different numbers of real tokens, where a loss is each rank's mean over its own.

    Args:
        valid: bool (batch, length), of this rank's tokens.
        group: the ranks.

    Raises:
        ValueError: naming ``valid`` and the numbers.
    """
    counts = [torch.zeros_like(valid.sum()) for _ in range(group.size())]
    dist.all_gather(counts, valid.sum(), group=group)
    real = [int(count) for count in counts]
    right = "of as many real tokens on every rank: routers' losses are means over each rank's; or train without them"
    require(len(set(real)) == 1, "valid", real, right)
