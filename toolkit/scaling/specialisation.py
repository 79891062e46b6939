"""Which experts take which tokens: counts by token id, pairs that serve together, and what the id says of the expert.

A router that reads a token's context may send one id to any expert; one that reads the id alone always to the same. The
mutual information between the two says where a trained router stands between.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from toolkit.checks import require, require_positive
from toolkit.files import replacing
from toolkit.layers import MoE
from toolkit.models import Decoder, DecoderConfig
from toolkit.routing import Assignment
from toolkit.routing.selection import selection
from toolkit.training.checkpoints import read_checkpoint
from toolkit.training.router_layers import moe_layers

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

FILE = "specialisation.npz"


_SCALINGS = 500  # rounds of the fit of quasi-independence; a table that can be fitted takes some dozens


@dataclass(frozen=True)
class LayerSpecialisation:
    """What the tokens of a text chose in one layer, before anything was dropped.

    Attributes:
        counts: int64 (experts, vocab_size), how often a token of that id chose the expert.
        occurrences: int64 (vocab_size,), how often a token of that id was routed.
        together: int64 (experts, experts), how many tokens chose both experts; on the diagonal, how many chose one.
    """

    counts: Counts
    occurrences: Counts
    together: Counts

    @property
    def mutual_information(self) -> float:
        """I(expert; token id) in bits, of one choice, Miller and Madow's correction for the sample's size applied.

        The plug-in estimate H(expert) + H(id) - H(expert, id) is too high by about the degrees of freedom over 2n nats,
        n being the choices; each entropy is raised by (its occupied cells - 1) / 2n. Choices of one token are without
        replacement and those of neighbours alike, of which the correction knows nothing: without a link the estimate
        scatters around 0, slightly below it for top_k > 1. 0: the id says nothing. See also :attr:`ceiling`.

        Source: Miller 1955, Note on the bias of information estimates.
        """
        return _entropy(self.counts.sum(1)) + _entropy(self.counts.sum(0)) - _entropy(self.counts)

    @property
    def ceiling(self) -> float:
        """Bits that a router reaches which reads the id alone, at these loads: H(expert) less that of the free order.

        A token of k different experts has log2 k bits left in which of them a choice is, whoever chose them.
        """
        chosen, seen = self.counts.sum(0), self.occurrences
        known = chosen > 0
        free = np.sum(chosen[known] * np.log2(np.maximum(chosen[known] / seen[known], 1.0))) / chosen.sum()
        return _entropy(self.counts.sum(1)) - float(free)

    @property
    def lift(self) -> Floats:
        """(experts, vocab_size): how many times likelier an id chooses the expert than any id does; nan: never seen."""
        with np.errstate(invalid="ignore", divide="ignore"):
            expected = self.counts.sum(1, keepdims=True) * self.counts.sum(0, keepdims=True) / self.counts.sum()
            lifted: Floats = self.counts / expected
        return lifted

    @property
    def pairs(self) -> Counts:
        """``together`` with zeros on the diagonal: an expert is no pair with itself."""
        return self.together - np.diag(np.diagonal(self.together))

    @property
    def pair_lift(self) -> Floats:
        """(experts, experts): how many times oftener two experts serve one token than if pairs formed independently.

        Independence of a table without a diagonal is Goodman's quasi-independence: expected a_i a_j for i != j, with
        the row sums observed. nan on the diagonal and where an expert is in no pair.

        Source: Goodman 1968 (JASA 63), The analysis of cross-classified data.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            lifted: Floats = self.pairs / _quasi_independent(self.pairs.astype(np.float64))
        return lifted


def measure_specialisation(
    decoder: Decoder, windows: Tensor, *, batch_size: int = 32
) -> dict[str, LayerSpecialisation]:
    """Route a text through a decoder in eval mode and count what each MoE layer chose; layers by short name.

    Layers behind a soft router choose nothing and are left out.

    Args:
        decoder: in any mode, which it is left in.
        windows: token ids int64 (windows, context + 1); the last of each is a target only and not routed.
        batch_size: windows at once.

    Raises:
        ValueError: no layer chooses experts, or a window has no input.
    """
    require_positive(batch_size=batch_size)
    fits = windows.ndim == 2 and windows.shape[0] >= 1 and windows.shape[1] >= 2
    require(fits, "windows.shape", tuple(windows.shape), "(windows, context + 1), at least one of at least 2")
    inputs, vocabulary = windows[:, :-1], decoder.embedding.num_embeddings
    sums: dict[str, list[Tensor]] = {}
    with _told_ids(decoder) as told, torch.no_grad():
        for batch in inputs.split(batch_size):
            told.clear()
            decoder(batch)
            for name, (moe, ids) in told.items():
                if isinstance(moe.assignment, Assignment):
                    found = _count(moe.assignment, ids.flatten(), vocabulary)
                    sums[name] = [a + b for a, b in zip(sums[name], found, strict=True)] if name in sums else found
    require(bool(sums), "decoder", decoder.__class__.__name__, "one with a layer whose tokens choose experts")
    return {name: LayerSpecialisation(*(part.numpy() for part in parts)) for name, parts in sums.items()}


def _count(assignment: Assignment, ids: Tensor, vocabulary: int) -> list[Tensor]:
    """counts, occurrences and together of one batch, int64."""
    chosen = selection(assignment).long().cpu()
    routed = ids if assignment.valid is None else ids[assignment.valid]  # the others are padding
    counts = torch.zeros(vocabulary, chosen.shape[1], dtype=torch.int64).index_add_(0, ids.cpu(), chosen)
    return [counts.T, torch.bincount(routed.cpu(), minlength=vocabulary), chosen.T @ chosen]


@contextmanager
def _told_ids(decoder: Decoder) -> Iterator[dict[str, tuple[MoE, Tensor]]]:
    """Eval mode, in which each MoE layer that ran is noted with the ids of the tokens it was given."""
    told: dict[str, tuple[MoE, Tensor]] = {}
    mode, hooks = decoder.training, []

    def note(name: str, moe: MoE) -> Any:
        def hook(_: Any, __: Any, keywords: dict[str, Any], ___: Any) -> None:
            told[name] = (moe, keywords["token_ids"])

        return moe.register_forward_hook(hook, with_kwargs=True)

    hooks = [note(name, moe) for name, moe in moe_layers(SimpleNamespace(decoder=decoder))]
    decoder.eval()
    try:
        yield told
    finally:
        decoder.train(mode)
        for hook in hooks:
            hook.remove()


def trained_decoder(folder: Path) -> Decoder:
    """The decoder of a finished run, from its ``run.json`` and ``checkpoints/last.ckpt``, in the weights' own dtype.

    Raises:
        FileNotFoundError: the folder lacks either.
    """
    settings = json.loads((folder / "run.json").read_text())
    saved = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    head = "decoder."
    weights = {name[len(head) :]: value for name, value in saved["state_dict"].items() if name.startswith(head)}
    decoder = Decoder(DecoderConfig.from_dict(settings["model"]))
    if any(value.dtype == torch.float64 for value in weights.values()):
        decoder.double()
    decoder.load_state_dict(weights)
    return decoder.eval()


def run_specialisation(folder: Path, windows: Tensor) -> dict[str, LayerSpecialisation]:
    """Measure a finished run on validation ``windows`` (windows, context + 1) and keep it in its folder.

    Raises:
        FileNotFoundError: the folder lacks its settings or its checkpoint.
        ValueError: as :func:`measure_specialisation`.
    """
    layers = measure_specialisation(trained_decoder(folder), windows)
    save_specialisation(folder / FILE, layers)
    return layers


def save_specialisation(path: Path, layers: Mapping[str, LayerSpecialisation]) -> None:
    """Write an npz with ``<layer>/counts``, ``<layer>/occurrences`` and ``<layer>/together``; whole or not at all."""
    arrays = {f"{name}/{part}": value for name, layer in layers.items() for part, value in vars(layer).items()}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_specialisation(path: Path) -> dict[str, LayerSpecialisation]:
    """What :func:`save_specialisation` wrote."""
    with np.load(path) as saved:
        parts = {name: saved[name] for name in saved.files}
    names = dict.fromkeys(name.rpartition("/")[0] for name in parts)
    fields = ("counts", "occurrences", "together")
    return {name: LayerSpecialisation(*(parts[f"{name}/{field}"] for field in fields)) for name in names}


def _entropy(counts: Counts) -> float:
    """Bits, of counts of any shape that are not all 0, with Miller and Madow's correction."""
    cells = counts[counts > 0].astype(np.float64)
    total = cells.sum()
    nats = np.log(total) - np.sum(cells * np.log(cells)) / total + (len(cells) - 1) / (2 * total)
    return float(nats / np.log(2))


def _quasi_independent(pairs: Floats) -> Floats:
    """The table a_i a_j off the diagonal with the row sums of ``pairs``, by iterative proportional fitting."""
    rows = pairs.sum(1)
    fitted = 1.0 - np.eye(len(pairs))
    for _ in range(_SCALINGS):
        scale = np.sqrt(np.divide(rows, fitted.sum(1), out=np.zeros_like(rows), where=fitted.sum(1) > 0))
        fitted = fitted * scale * scale[:, None]
    return fitted
