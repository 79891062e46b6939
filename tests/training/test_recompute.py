"""A run whose layers are computed again learns the same, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_cases import MODEL, budget, corpus, metrics, training

from toolkit.layers.recomputation import Recomputed
from toolkit.training import LanguageModel, fit


@pytest.mark.parametrize(("policy", "again"), [("none", []), ("full", [0, 1, 2]), ("selective", [0, 1, 2]), (2, [1])])
def test_the_module_applies_the_setting(policy: str | int, again: list[int]) -> None:
    blocks = LanguageModel(MODEL, training(recompute=policy)).decoder.blocks
    assert [layer for layer, block in enumerate(blocks) if isinstance(block.forward, Recomputed)] == again


@pytest.mark.slow
def test_a_run_is_the_same_run(tmp_path: Path) -> None:
    fitted = {}
    for policy in ("none", "full", "selective"):
        config = training(recompute=policy)
        fitted[policy] = fit(MODEL, config, corpus(), tmp_path / policy, budget(config), validation_count=8)
    assert metrics(tmp_path / "full") == metrics(tmp_path / "none") == metrics(tmp_path / "selective")
    assert fitted["full"].bits_per_byte == fitted["none"].bits_per_byte == fitted["selective"].bits_per_byte
    assert fitted["none"].steps == 40
