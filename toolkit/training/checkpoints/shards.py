"""Tensors as shards on the disk, by torch.distributed.checkpoint, with its metadata as JSON in the place of a pickle.

torch 2.13 writes ``.metadata`` by ``pickle.dump`` and reads it by ``pickle.load`` (``FileSystemReader.read_metadata``),
and what is no tensor by ``torch.load(..., weights_only=False)`` (``DefaultLoadPlanner.load_bytes``): whoever can write
to a checkpoint could run code in whoever reads it. Here only tensors are given to it, which it reads with
``weights_only=True``, and :class:`JsonWriter` and :class:`JsonReader` keep the metadata as ``tensors.json``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from toolkit.checks import require

TENSORS = "tensors.json"
SHARDS = ".distcp"
"""How the names of the shards' files end."""


class JsonWriter(dcp.FileSystemWriter):
    """Writes what each tensor is and where its pieces are as ``tensors.json``."""

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the metadata, in the coordinating process."""
        pieces = {result.index: result.storage_data for written in results for result in written}
        table = {
            name: {
                "dtype": str(facts.properties.dtype).removeprefix("torch."),
                "shape": list(facts.size),
                "pieces": [_piece(chunk, pieces[MetadataIndex(name, chunk.offsets)]) for chunk in facts.chunks],
            }
            for name, facts in metadata.state_dict_metadata.items()
            if isinstance(facts, TensorStorageMetadata)
        }
        Path(self.path, TENSORS).write_text(json.dumps(table) + "\n", encoding="utf-8")


class JsonReader(dcp.FileSystemReader):
    """Reads what :class:`JsonWriter` wrote."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The metadata, built from plain numbers and names.

        Raises:
            ValueError: if a dtype is unknown, or a piece's file is not one of the folder's.
        """
        table = _table(Path(self.path))
        facts: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        places = {}
        for name, entry in table.items():
            facts[name] = _facts(name, entry)
            for piece in entry["pieces"]:
                index = MetadataIndex(name, piece["offsets"])
                places[index] = _StorageInfo(piece["file"], int(piece["start"]), int(piece["bytes"]))
        return Metadata(facts, storage_data=places, storage_meta=StorageMeta(load_id=self.load_id))


def save_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write tensors to ``folder``, each process its own shards of DTensors; of copies one. A collective call.

    Raises:
        OSError: in every process, if one could not write.
    """
    try:
        with _quiet():
            dcp.save(dict(tensors), storage_writer=JsonWriter(folder), no_dist=not dist.is_initialized())
    except dcp.api.CheckpointException as error:
        causes = "; ".join(f"rank {rank}: {cause[0]}" for rank, cause in error.failures.items())
        raise OSError(causes) from error


def load_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill ``tensors`` from the shards in ``folder``: a DTensor with this process's part of it, wherever it was cut.

    Each process reads for itself.

    Raises:
        ValueError: if a tensor is not in the checkpoint, or of another shape, or its pieces are elsewhere.
    """
    table = _table(folder)
    for name, tensor in tensors.items():
        require(name in table, "tensor", name, f"in the checkpoint {folder}")
        shape = tuple(table[name]["shape"])
        require(tuple(tensor.shape) == shape, f"{name}.shape", tuple(tensor.shape), f"the checkpoint's {shape}")
    try:
        with _quiet():
            dcp.load(dict(tensors), storage_reader=JsonReader(folder), no_dist=True)
    except dcp.api.CheckpointException as error:
        raise error.failures[0][0] from error


def read_tensors(folder: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors of a checkpoint, whole, on the host."""
    table = _table(folder)
    tensors = {name: torch.empty(table[name]["shape"], dtype=_dtype(name, table[name])) for name in names}
    load_shards(tensors, folder)
    return tensors


def tensor_names(folder: Path) -> list[str]:
    """The tensors that a checkpoint holds."""
    return list(_table(folder))


def _table(folder: Path) -> dict[str, Any]:
    """What each tensor is, and where its pieces are: in files of the folder only."""
    table = dict(json.loads((folder / TENSORS).read_text(encoding="utf-8")))
    for name, entry in table.items():
        for file in {piece["file"] for piece in entry["pieces"]}:
            require(Path(file).name == file, f"{name}.file", file, "a file of the checkpoint's own folder")
    return table


def _piece(chunk: ChunkStorageMetadata, place: _StorageInfo) -> dict[str, Any]:
    where = {"file": place.relative_path, "start": place.offset, "bytes": place.length}
    return {"offsets": list(chunk.offsets), "sizes": list(chunk.sizes), **where}


def _facts(name: str, entry: Mapping[str, Any]) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(torch.Size(p["offsets"]), torch.Size(p["sizes"])) for p in entry["pieces"]]
    return TensorStorageMetadata(TensorProperties(_dtype(name, entry)), torch.Size(entry["shape"]), chunks)


def _dtype(name: str, entry: Mapping[str, Any]) -> torch.dtype:
    dtype = getattr(torch, entry["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name}.dtype={entry['dtype']!r}: it must be a dtype of torch")
    return dtype


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch says of saving in one process, which is done on purpose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*assuming the intent is to.*")
        warnings.filterwarnings("ignore", message=".*TypedStorage is deprecated.*")
        yield
