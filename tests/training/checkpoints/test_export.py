"""The weights as one safetensors file, and a clear refusal without the package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from toolkit.training.checkpoints import export_safetensors, write_checkpoint


def checkpoint(folder: Path, sharded: bool = False) -> Path:
    shared = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    state = {
        "decoder.embedding.weight": shared,
        "decoder.head.weight": shared,
        "decoder.slice": shared.t(),
        "other": shared,
    }
    write_checkpoint({"state_dict": state}, folder / "x.ckpt", sharded=sharded)
    return folder / "x.ckpt"


@pytest.mark.parametrize("sharded", [False, True])
def test_it_holds_the_decoder_s_tensors_by_their_names(tmp_path: Path, sharded: bool) -> None:
    safetensors = pytest.importorskip("safetensors")
    path, file = checkpoint(tmp_path, sharded), tmp_path / "model.safetensors"
    assert export_safetensors(path, file) == ["embedding.weight", "head.weight", "slice"]
    weights = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"] if not sharded else None
    with safetensors.safe_open(file, "pt") as opened:
        assert set(opened.keys()) == {"embedding.weight", "head.weight", "slice"}
        one = opened.get_tensor("embedding.weight")
        assert torch.equal(opened.get_tensor("slice"), one.t())
        assert weights is None or torch.equal(one, weights["decoder.embedding.weight"])


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"safetensors is not installed: pip install .*\[hf\]"):
        export_safetensors(checkpoint(tmp_path), tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


def test_a_checkpoint_without_a_decoder_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    write_checkpoint({"state_dict": {"other": torch.ones(1)}}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="holds no decoder's weights"):
        export_safetensors(tmp_path / "x.ckpt", tmp_path / "model.safetensors")
