"""What is recorded of the routers, against their own weights and inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_cases import MODEL, WINDOWS, budget, corpus, training

from toolkit.layers import MoE
from toolkit.models import Decoder
from toolkit.training import Fitted, LanguageModel, fit
from toolkit.training.router_monitor import moe_layers

CONFIG = training(steps=12, log_every=4, evaluations=3)
STEPS = (1, 4, 8, 12)
EXPERTS, TOP_K = 4, 2


class Watch:
    """Probabilities and choices of every router in training, straight from logits = weight x."""

    def __init__(self) -> None:
        self.layers: dict[int, list[np.ndarray]] = {}

    def __call__(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, MoE) and module.training:
            x = inputs[0].detach().flatten(0, 1).double()
            (weight,) = module.router.parameters()
            probabilities = (x @ weight.detach().double().T).softmax(-1)
            self.layers.setdefault(id(module), []).append(probabilities.numpy())


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fitted, list[list[np.ndarray]]]:
    folder, watch = tmp_path_factory.mktemp("run"), Watch()
    with torch.nn.modules.module.register_module_forward_hook(watch):
        fitted = fit(MODEL, CONFIG, corpus(), folder, budget(CONFIG), validation_count=WINDOWS)
    return folder, fitted, list(watch.layers.values())


def load_of(probabilities: np.ndarray) -> np.ndarray:
    chosen = np.argsort(-probabilities, axis=1)[:, :TOP_K]
    return np.bincount(chosen.flatten(), minlength=EXPERTS) / chosen.size


def entropy_of(probabilities: np.ndarray) -> float:
    return float(-(probabilities * np.log(probabilities)).sum(axis=1).mean())


def test_the_file_of_loads(watched: tuple[Path, Fitted, list[list[np.ndarray]]]) -> None:
    folder, _, layers = watched
    with np.load(folder / "load.npz") as saved:
        assert set(saved.files) == {"steps", "layer0", "layer2"}  # layer1 is dense
        assert saved["steps"].tolist() == list(STEPS)
        for name, layer in zip(("layer0", "layer2"), layers, strict=True):
            expected = np.array([load_of(layer[step - 1]) for step in STEPS])
            np.testing.assert_allclose(saved[name], expected, atol=1e-12)


def test_the_curves(watched: tuple[Path, Fitted, list[list[np.ndarray]]]) -> None:
    folder, _, layers = watched
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()

    def curve(tag: str) -> list[float]:
        events = board.Scalars(tag)
        assert [event.step for event in events] == list(STEPS)
        return [event.value for event in events]

    for name, layer in zip(("layer0", "layer2"), layers, strict=True):
        at = [layer[step - 1] for step in STEPS]
        loads = np.array([load_of(probabilities) for probabilities in at])
        assert curve(f"router/{name}/token_entropy") == pytest.approx([entropy_of(p) for p in at], rel=1e-5)
        assert curve(f"router/{name}/max_violation") == pytest.approx(loads.max(axis=1) * EXPERTS - 1, rel=1e-5)
        assert curve(f"router/{name}/dropped_share") == [0.0] * len(STEPS)
        for expert in range(EXPERTS):
            assert curve(f"router/{name}/load/expert{expert}") == pytest.approx(loads[:, expert], rel=1e-5)
    assert not [tag for tag in board.Tags()["scalars"] if "layer1" in tag]


def test_the_heat_map_has_a_row_for_each_expert_and_a_column_for_each_record(
    watched: tuple[Path, Fitted, list[list[np.ndarray]]],
) -> None:
    board = EventAccumulator(str(watched[0]), size_guidance={"images": 0})
    board.Reload()
    assert set(board.Tags()["images"]) == {"router/layer0/load_heat_map", "router/layer2/load_heat_map"}
    (image,) = board.Images("router/layer0/load_heat_map")
    assert (image.height, image.width) == (8 * EXPERTS, 4 * len(STEPS))


def test_the_run_s_figures_are_means_over_its_layers_at_the_last_record(
    watched: tuple[Path, Fitted, list[list[np.ndarray]]],
) -> None:
    _, fitted, layers = watched
    last = [layer[STEPS[-1] - 1] for layer in layers]
    violations = [load_of(probabilities).max() * EXPERTS - 1 for probabilities in last]
    assert fitted.max_violation == pytest.approx(np.mean(violations))
    assert fitted.token_entropy == pytest.approx(
        np.mean([entropy_of(probabilities) for probabilities in last]), rel=1e-5
    )


def test_layers_are_named_by_their_place() -> None:
    module = LanguageModel(MODEL, CONFIG)
    assert isinstance(module.decoder, Decoder)
    assert [name for name, _ in moe_layers(module)] == ["layer0", "layer2"]
