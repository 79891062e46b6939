"""A checkpoint that was changed in any way is known, and its file named."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damaged_checkpoints import DAMAGES, trial
from damaged_checkpoints import FILES as ALL_FILES

from toolkit.training.checkpoints import CorruptCheckpoint, problems, read_checkpoint, seal, write_checkpoint

STATE = {
    "state_dict": {"decoder.weight": torch.arange(2000.0).view(40, 50), "decoder.count": torch.tensor(3)},
    "callbacks": {"x": [1, 2.5, "text", (True, None)]},
    "global_step": 7,
}
FILES = ("__0_0.distcp", "tensors.json", "rest.pt", "manifest.json")


def written(folder: Path, sharded: bool) -> Path:
    path = folder / "x.ckpt"
    write_checkpoint(STATE, path, sharded=sharded)
    assert problems(path) == []
    return path


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_each_file_of_a_folder(tmp_path: Path, file: str, damage: str) -> None:
    path = written(tmp_path, sharded=True)
    assert {entry.name for entry in path.iterdir()} == set(FILES)
    DAMAGES[damage](path / file)
    (problem,) = problems(path)
    assert problem.startswith(file)
    with pytest.raises(CorruptCheckpoint, match=file):
        read_checkpoint(path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file(tmp_path: Path, damage: str) -> None:
    path = written(tmp_path, sharded=False)
    DAMAGES[damage](path)
    (problem,) = problems(path)
    assert problem.startswith("x.ckpt")
    with pytest.raises(CorruptCheckpoint, match=r"x\.ckpt"):
        read_checkpoint(path)


@pytest.mark.parametrize("file", ALL_FILES)
def test_each_line_of_the_table_of_damages_is_right(tmp_path: Path, file: str) -> None:
    lines = [trial(tmp_path / damage, file, damage) for damage in DAMAGES]
    assert all(right for _, right in lines), lines


def test_every_byte_of_a_small_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    write_checkpoint({"x": torch.ones(1)}, path)
    content = path.read_bytes()
    for place in np.random.default_rng(0).permutation(len(content))[:300]:
        changed = bytearray(content)
        changed[place] ^= 1 << int(place) % 8
        path.write_bytes(changed)
        assert problems(path), place
    for length in (*range(0, len(content), 37), len(content) - 71, len(content) - 1):
        path.write_bytes(content[:length])
        assert problems(path), length


def test_the_digest_is_sha256_of_all_before_it_and_the_file_still_an_archive(tmp_path: Path) -> None:
    path = written(tmp_path, sharded=False)
    content = path.read_bytes()
    assert content[-71:] == b"sha256:" + hashlib.sha256(content[:-71]).hexdigest().encode()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment == content[-71:]
    torch.testing.assert_close(torch.load(path, weights_only=True, mmap=True)["state_dict"], STATE["state_dict"])


def test_a_file_of_torch_itself_is_held_against_its_own_checksums(tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    torch.save(STATE, path)
    assert problems(path) == []
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(2000.0).numpy().tobytes()[:64]) + 5] ^= 1
    path.write_bytes(content)
    (problem,) = problems(path)
    assert problem.startswith("old.ckpt does not have the CRC-32")


def test_what_is_no_archive_cannot_be_sealed_and_nothing_twice(tmp_path: Path) -> None:
    path = written(tmp_path, sharded=False)
    with pytest.raises(ValueError, match="not sealed yet"):
        seal(path)
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(ValueError, match="a file that torch.save wrote"):
        seal(tmp_path / "text")


@pytest.mark.parametrize("sharded", [False, True])
def test_what_is_read_is_what_was_written(tmp_path: Path, sharded: bool) -> None:
    found = read_checkpoint(written(tmp_path, sharded))
    torch.testing.assert_close(found.pop("state_dict"), STATE["state_dict"], rtol=0, atol=0)
    assert found == {name: value for name, value in STATE.items() if name != "state_dict"}


class Harmful:
    """Unpickled freely, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("file", ["rest.pt", "__0_0.distcp", "tensors.json"])
def test_nothing_in_a_checkpoint_is_unpickled(tmp_path: Path, file: str) -> None:
    """Also where whoever changed it has made the checksums anew."""
    path, mark = written(tmp_path, sharded=True), tmp_path / "mark"
    if file == "tensors.json":
        (path / file).write_bytes(pickle.dumps(Harmful(mark)))
    else:
        torch.save(Harmful(mark), path / file)
    if file == "__0_0.distcp":  # where every tensor is said to be
        table = json.loads((path / "tensors.json").read_text())
        for entry in table.values():
            entry["pieces"][0].update(start=0, bytes=(path / file).stat().st_size)
        (path / "tensors.json").write_text(json.dumps(table))
    seal(path)
    assert problems(path) == []
    with pytest.raises(
        (pickle.UnpicklingError, ValueError), match="Weights only load failed|Expecting value|codec can't"
    ):
        read_checkpoint(path)
    assert not mark.exists()
    torch.save(Harmful(mark), tmp_path / "one.ckpt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only"):
        read_checkpoint(tmp_path / "one.ckpt")
    assert not mark.exists()


def test_a_piece_outside_the_folder_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, sharded=True)
    table = path / "tensors.json"
    table.write_text(table.read_text().replace("__0_0.distcp", "../secret"))
    seal(path)
    with pytest.raises(ValueError, match="a file of the checkpoint's own folder"):
        read_checkpoint(path)
