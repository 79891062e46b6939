"""The number format for each device, with the device's word made up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from toolkit.training import resolve_precision


def machine(monkeypatch: pytest.MonkeyPatch, *, gpu: bool = False, gpu_bf16: bool = False, cpu_bf16: str = "") -> None:
    """Let torch report this hardware."""

    def supported(including_emulation: bool = True) -> bool:
        return gpu_bf16 or including_emulation  # torch emulates bf16 on old GPUs; that is not hardware

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == cpu_bf16, raising=False)


@pytest.mark.parametrize("accelerator", ["auto", "cpu", "gpu"])
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_what_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch, precision: str, accelerator: str) -> None:
    for bf16 in (True, False):
        machine(monkeypatch, gpu=bf16, gpu_bf16=bf16)
        assert resolve_precision(precision, accelerator) == precision


@pytest.mark.parametrize(
    ("accelerator", "hardware", "expected"),
    [
        ("cpu", {}, "32-true"),
        ("cpu", {"cpu_bf16": "_is_avx512_bf16_supported"}, "bf16-mixed"),
        ("cpu", {"cpu_bf16": "_is_amx_tile_supported"}, "bf16-mixed"),
        ("cpu", {"gpu": True, "gpu_bf16": True}, "32-true"),
        ("auto", {"cpu_bf16": "_is_amx_tile_supported"}, "bf16-mixed"),
        ("auto", {"gpu": True, "gpu_bf16": True}, "bf16-mixed"),
        ("auto", {"gpu": True, "cpu_bf16": "_is_amx_tile_supported"}, "32-true"),
        ("gpu", {"gpu": True}, "32-true"),
        ("gpu", {"gpu": True, "gpu_bf16": True}, "bf16-mixed"),
    ],
)
def test_bf16_where_the_device_that_trains_has_it_in_hardware(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, hardware: dict[str, Any], expected: str
) -> None:
    machine(monkeypatch, **hardware)
    assert resolve_precision("auto", accelerator) == expected


def test_an_older_torch_that_cannot_tell_means_no(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert resolve_precision("auto", "cpu") == "32-true"
