"""The loss by tokens seen is in bits per token, and masks' reach is what they lead to."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig
from toolkit.scaling import StudyFolder
from toolkit.scaling.sparsity.context_use import context_use, farthest, plot_context_use

VOCAB, CONTEXT = 32, 20


def config(*patterns: str) -> DecoderConfig:
    blocks = tuple(BlockConfig(AttentionConfig(pattern=pattern), FeedForwardConfig(16)) for pattern in patterns)
    return DecoderConfig(VOCAB, 8, blocks)


def trained(folder: Path, model: Decoder) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"model": model.config.to_dict()}))
    state = {f"decoder.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state}, folder / "checkpoints" / "last.ckpt")


def test_a_model_that_knows_nothing_pays_the_logarithm_of_the_vocabulary_everywhere(tmp_path: Path) -> None:
    from synthetic_study import run_result

    row = run_result("dense", 1e9, 8, 0, 2.0)
    model = Decoder(config("Causal()"))
    model.embedding.weight.data.zero_()
    trained(StudyFolder(tmp_path).run(row.run), model)
    windows = torch.randint(VOCAB, (3, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
    (use,) = context_use(StudyFolder(tmp_path), [row], windows)
    assert use.bits == pytest.approx([math.log2(VOCAB)] * len(use.bits))
    assert np.all(np.diff(use.seen) > 0)
    assert use.seen[-1] <= CONTEXT
    drawn = plot_context_use([use], tmp_path / "use.png")
    assert drawn.path.stat().st_size > 1000
    assert drawn.runs == (row.run,)
    assert "`dense` 19" in drawn.caption


@pytest.mark.parametrize(
    ("patterns", "reach"),
    [
        (("Causal()",), CONTEXT - 1),
        (("Causal() & SlidingWindow(4)",), 3),
        (("Causal() & SlidingWindow(4)", "Causal() & SlidingWindow(4)"), 6),
        (("Causal() & SlidingWindow(4)", "Causal()"), CONTEXT - 1),
    ],
)
def test_masks_lead_as_far_back_as_their_windows_add_up_to(patterns: tuple[str, ...], reach: int) -> None:
    assert farthest(config(*patterns), CONTEXT) == reach
