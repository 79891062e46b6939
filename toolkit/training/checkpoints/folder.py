"""One checkpoint, written and read: a file where every process holds the whole state, a folder of shards where not."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from toolkit.checks import require
from toolkit.training.checkpoints.publish import publish, remove, temporary_for
from toolkit.training.checkpoints.seal import digest_of, require_whole, seal
from toolkit.training.checkpoints.shards import SHARDS, load_shards, read_tensors, save_shards, tensor_names
from toolkit.training.checkpoints.tree import merged, put_together, take_apart

REST = "rest.pt"
"""A folder's file with all that is no tensor: read with ``weights_only=True``."""

STATES = ("state_dict", "optimizer_states")
"""Keys, as Lightning has them, of what is the same in every process that has it."""


def write_checkpoint(
    state: Mapping[str, Any], path: Path, *, before: Path | None = None, sharded: bool = False
) -> None:
    """Write ``state`` so that ``path`` is all of it or what it was before.

    Args:
        state: nested dicts, lists and tuples of tensors, numbers and text.
        path: of the checkpoint.
        before: the name that what ``path`` was so far takes.
        sharded: write a folder. A collective call: of each DTensor every process writes its own shards, of a plain
            tensor that several have one does (outside of ``STATES`` the first), and what only some processes have
            (layers of a pipeline's stages) is joined. False: write a file, in this process alone.

    Raises:
        OSError: if it could not be written, in every process; ``path`` is then what it was.
        ValueError: if there are DTensors and it is not ``sharded``.
    """
    temporary = temporary_for(path)
    if sharded:
        _write_folder(state, temporary, lambda: publish(temporary, path, before))
        return
    _, tensors = take_apart(state)
    cut = [name for name, tensor in tensors.items() if isinstance(tensor, DTensor)]
    require(not cut, "sharded", sharded, f"True, since {cut[:1]} is spread over processes")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        _save(dict(state), temporary)
        seal(temporary)
        publish(temporary, path, before)
    finally:
        remove(temporary)


def read_checkpoint(path: Path, *, verify: bool = True, mmap: bool = False) -> dict[str, Any]:
    """The state in a checkpoint, file or folder, its tensors whole and on the host.

    Args:
        path: of the checkpoint.
        verify: hold it against its checksums first.
        mmap: leave a file's tensors on the disk until they are used.

    Raises:
        CorruptCheckpoint: if it is not whole.
    """
    if verify:
        require_whole(path)
    if not path.is_dir():
        return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=mmap))
    return dict(put_together(_rest(path), read_tensors(path, tensor_names(path))))


def load_checkpoint_into(
    path: Path, tensors: Mapping[str, Tensor], *, elsewhere: tuple[str, ...] = (), verify: bool = True
) -> dict[str, Any]:
    """Fill ``tensors`` in place from a folder, each in its own layout; the rest of the state.

    Args:
        path: of a checkpoint that is a folder.
        tensors: by name: the path of keys through the state, ``"state_dict/decoder.norm.weight"``. DTensors may be cut
            over another mesh than the one that wrote them.
        elsewhere: keys of the state whose other tensors are not read, being other processes': the rest has None there.
        verify: hold it against its checksums first.

    Raises:
        CorruptCheckpoint: if it is not whole.
        ValueError: if it has no such tensor, or one of another shape.
    """
    if verify:
        require_whole(path)
    unread = tuple(f"{key}/" for key in elsewhere)
    others = [name for name in tensor_names(path) if name not in tensors and not name.startswith(unread or "\0")]
    read = read_tensors(path, others)
    load_shards(tensors, path)
    return dict(put_together(_rest(path), defaultdict(lambda: None, {**read, **tensors})))


def _save(state: Any, path: Path) -> None:
    """``torch.save``, whose archive writer turns a full disk into a RuntimeError that does not say so."""
    try:
        torch.save(state, path)
    except RuntimeError as error:
        raise OSError(f"{error}, with {shutil.disk_usage(path.parent).free:,} bytes free") from error


def _rest(folder: Path) -> Any:
    return torch.load(folder / REST, map_location="cpu", weights_only=True)


def _write_folder(state: Mapping[str, Any], temporary: Path, take_name: Callable[[], None]) -> None:
    rest, tensors = take_apart(dict(state))
    try:
        _together(lambda: _fresh(temporary), only_first=True)
        save_shards({name: tensor.detach() for name, tensor in _own(tensors).items()}, temporary)
        rests: list[Any] = _gathered(rest)
        digests = _gathered(_together(lambda: _own_digests(temporary)))
        _together(lambda: _finish(temporary, rests, digests, take_name), only_first=True)
    finally:
        if _rank() == 0:
            remove(temporary)


def _own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what a process before this one has too.

    Of copies torch chooses one by how much each process writes; those that callbacks keep may differ, as the rest does,
    which is the first process's.
    """
    unlike = {name for name, tensor in tensors.items() if _may_differ(name, tensor)}
    before = set[str]().union(*_gathered(unlike)[: _rank()])
    return {name: tensor for name, tensor in tensors.items() if name not in before}


def _may_differ(name: str, tensor: Tensor) -> bool:
    return not isinstance(tensor, DTensor) and name.split("/", maxsplit=1)[0] not in STATES


def _fresh(folder: Path) -> None:
    remove(folder)
    folder.mkdir(parents=True)


def _own_digests(folder: Path) -> dict[str, str]:
    """Of this process's shards: each reads back what it wrote, all at the same time."""
    return {path.name: digest_of(path) for path in folder.glob(f"__{_rank()}_*{SHARDS}")}


def _finish(folder: Path, rests: list[Any], digests: list[dict[str, str]], take_name: Callable[[], None]) -> None:
    rest = rests[0]
    for other in rests[1:]:
        rest = merged(rest, other)
    _save(rest, folder / REST)
    seal(folder, {name: digest for each in digests for name, digest in each.items()})
    take_name()


def _together(work: Callable[[], Any], only_first: bool = False) -> Any:
    """Do ``work`` in every process, or in the first; if one cannot, no process goes on.

    Raises:
        OSError: in every process, naming the ranks and what each met.
    """
    result, failure = None, ""
    try:
        if _rank() == 0 or not only_first:
            result = work()
    except OSError as error:
        failure = str(error)
    failures = {rank: text for rank, text in enumerate(_gathered(failure)) if text}
    if failures:
        raise OSError("; ".join(f"rank {rank}: {text}" for rank, text in failures.items()))
    return result


def _gathered(value: Any) -> list[Any]:
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
