"""What is recorded of the routers, against their own weights and inputs."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader
from training_cases import MODEL, MOE, WINDOWS, budget, corpus, training

from toolkit.layers import MoE
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, MoEConfig
from toolkit.routing import BiasBalancer, Jitter
from toolkit.training import Fitted, LanguageModel, RouterMonitor, fit
from toolkit.training.router_layers import moe_layers
from toolkit.training.router_probe import RouterProbe

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
        assert curve(f"router/{name}/dead_experts") == [(load == 0).sum() for load in loads]
        assert curve(f"router/{name}/min_load") == pytest.approx(loads.min(axis=1) * EXPERTS, rel=1e-5)
        assert curve(f"router/{name}/load_variation") == pytest.approx(loads.std(axis=1) * EXPERTS, rel=1e-5)
        importance = np.array([p.mean(axis=0) for p in at])
        marginal = -(importance * np.log(importance)).sum(axis=1)
        assert curve(f"router/{name}/marginal_entropy") == pytest.approx(marginal, rel=1e-5)
        information = marginal - [entropy_of(p) for p in at]
        assert curve(f"router/{name}/mutual_information") == pytest.approx(information, rel=1e-3)
        kept = [np.sort(p, axis=1)[:, -TOP_K:].sum(axis=1).mean() for p in at]
        assert curve(f"router/{name}/gate_mass") == pytest.approx(kept, rel=1e-5)
        for expert in range(EXPERTS):
            assert curve(f"router/{name}/load/expert{expert}") == pytest.approx(loads[:, expert], rel=1e-5)
            assert curve(f"router/{name}/importance/expert{expert}") == pytest.approx(importance[:, expert], rel=1e-5)
        assert curve(f"router/{name}/tokens") == [CONFIG.batch_size * CONFIG.context] * len(STEPS)
        assert curve(f"router/{name}/non_finite") == [0.0] * len(STEPS)
    violations = [[load_of(layer[step - 1]).max() * EXPERTS - 1 for layer in layers] for step in STEPS]
    assert curve("router/max_violation") == pytest.approx(np.mean(violations, axis=1), rel=1e-5)
    tags = board.Tags()["scalars"]
    assert not [tag for tag in tags if "layer1" in tag or "bias_range" in tag]  # dense; and there is no balancer
    assert {"router/layer0/logit_rms", "router/layer0/logit_max", "router/layer0/flip_rate"} <= set(tags)


def test_the_heat_map_has_a_row_for_each_expert_and_a_column_for_each_record(
    watched: tuple[Path, Fitted, list[list[np.ndarray]]],
) -> None:
    board = EventAccumulator(str(watched[0]), size_guidance={"images": 0})
    board.Reload()
    kinds = ("load_heat_map", "co_selection")
    assert set(board.Tags()["images"]) == {f"router/layer{layer}/{kind}" for layer in (0, 2) for kind in kinds}
    (image,) = board.Images("router/layer0/load_heat_map")
    assert (image.height, image.width) == (8 * EXPERTS, 4 * len(STEPS))
    (image,) = board.Images("router/layer0/co_selection")
    assert (image.height, image.width) == (8 * EXPERTS, 8 * EXPERTS)


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


def test_the_violation_over_a_validation_pass_is_that_of_all_its_tokens(tmp_path: Path) -> None:
    validated: dict[int, list[np.ndarray]] = {}

    def watch(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, MoE) and not module.training:
            validated.setdefault(id(module), []).append(module.assignment.probabilities.double().numpy())

    config = training(steps=4, log_every=4, evaluations=2)
    with torch.nn.modules.module.register_module_forward_hook(watch):
        monitor = RouterMonitor(tmp_path, 4, probe=False)  # whose forwards are in eval mode too
        module = LanguageModel(MODEL, config)
        batches = torch.randint(256, (6, 4, 33))
        _trainer(tmp_path, monitor).fit(module, _loader(batches[:3]), _loader(batches[3:]))
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    violations = []
    for name, layer in zip(("layer0", "layer2"), validated.values(), strict=True):
        assert len(layer) == 1 + 3  # the first is Lightning's sanity check, which is not logged
        (event,) = board.Scalars(f"router/{name}/max_violation_validation")
        expected = load_of(np.concatenate(layer[1:])).max() * EXPERTS - 1
        assert event.value == pytest.approx(expected, rel=1e-5)
        assert monitor.validation[name].max_violation == pytest.approx(expected)
        violations.append(expected)
    (event,) = board.Scalars("router/max_violation_validation")
    assert event.value == pytest.approx(np.mean(violations), rel=1e-5)


def test_what_layers_in_depth_chose_is_shown_of_the_batch_and_of_the_validation_pass(tmp_path: Path) -> None:
    block = BlockConfig(AttentionConfig(heads=2), MoEConfig(12, 4, 2), depth_capacity=0.3)
    module = LanguageModel(DecoderConfig(vocab_size=256, dim=16, blocks=(MOE, block)), training(steps=3, log_every=1))
    depth, rows = module.decoder.blocks[1], {True: [], False: []}
    with torch.no_grad():
        depth.router.predictor_down.mul_(3)
        depth.router.predictor_down_bias.zero_()  # it names about half of the tokens

    def watch(layer: torch.nn.Module, inputs: Any, output: Any) -> None:
        choice = depth.choice
        best = choice.weight >= choice.weight.sort(dim=1, descending=True).values[:, [9]]  # 10 of 32
        predicted = choice.prediction > 0
        tables = torch.stack([choice.selected, predicted, predicted == best]).double().detach()
        rows[layer.training].append(tables.flatten(1).numpy())

    depth.register_forward_hook(watch)
    batches = torch.randint(256, (6, 4, 33))
    monitor = RouterMonitor(tmp_path, 1, probe=False)
    validation = DataLoader([*batches[3:5], batches[5][:1]], batch_size=None)  # type: ignore[list-item]
    _trainer(tmp_path, monitor).fit(module, _loader(batches[:3]), validation)
    board = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    board.Reload()
    for row, name in enumerate(("selected", "predicted", "accuracy")):
        curve = [event.value for event in board.Scalars(f"router/layer1/depth_{name}")]
        assert curve == pytest.approx([tables[row].mean() for tables in rows[True]], rel=1e-5)
        (event,) = board.Scalars(f"router/layer1/depth_{name}_validation")
        passed = np.concatenate([tables[row] for tables in rows[False][1:]])  # after Lightning's sanity check
        assert event.value == pytest.approx(passed.mean(), rel=1e-5)
    assert not [tag for tag in board.Tags()["scalars"] if tag.startswith("router/layer0/depth")]
    assert board.Scalars("router/blocks.1.block.feed_forward/tokens")[0].value == 4 * 10


def test_flip_rates_are_those_of_the_first_sequence_routed_again(tmp_path: Path) -> None:
    module, batches = LanguageModel(MODEL, training(learning_rate=0.1)), torch.randint(256, (6, 4, 33))
    chosen: list[list[set[int]]] = []

    class Again(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            other = copy.deepcopy(module.decoder).eval()
            other(batches[0][:1, :-1])
            chosen.append([set(row) for row in other.blocks[2].feed_forward.assignment.indices.tolist()])

    monitor = RouterMonitor(tmp_path, 1)
    _trainer(tmp_path, monitor, Again()).fit(module, _loader(batches))
    pairs = itertools.pairwise(chosen)
    expected = [np.mean([len(b - a) / TOP_K for a, b in zip(*pair, strict=True)]) for pair in pairs]
    assert monitor.flip_rates["layer2"][1:] == pytest.approx(expected)
    assert math.isnan(monitor.flip_rates["layer2"][0])
    assert max(expected) > 0
    with np.load(tmp_path / "flip_rate.npz") as saved:
        assert set(saved.files) == {"steps", "layer0", "layer2"}
        assert saved["layer2"].tolist() == pytest.approx(monitor.flip_rates["layer2"], nan_ok=True)
        assert saved["steps"].tolist() == monitor.steps == [1, 2, 3, 4, 5, 6]


def test_the_monitor_and_its_probe_change_nothing_of_the_training(tmp_path: Path) -> None:
    def trained(*callbacks: lightning.Callback) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(1)
        module = _biased(LanguageModel(MODEL, training()))
        module.decoder.blocks[0].feed_forward.router.noise = Jitter(0.3)  # draws at every training forward
        _trainer(tmp_path, *callbacks).fit(module, _loader(torch.randint(256, (5, 4, 33))))
        return module.state_dict(), torch.rand(3)

    plain, after = trained()
    watched, then = trained(RouterMonitor(tmp_path, 2))
    assert torch.equal(after, then)
    assert all(torch.equal(watched[name], value) for name, value in plain.items())
    assert plain["decoder.blocks.0.feed_forward.router.balancer.bias"].any()


def test_a_checkpoint_brings_back_all_that_was_recorded(tmp_path: Path) -> None:
    monitor = RouterMonitor(tmp_path, 2)
    module, batches = LanguageModel(MODEL, training(learning_rate=0.1)), torch.randint(256, (4, 4, 33))
    _trainer(tmp_path, monitor).fit(module, _loader(batches))
    torch.save(monitor.state_dict(), tmp_path / "state.pt")
    other = RouterMonitor(tmp_path, 2)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.steps == monitor.steps == [1, 2, 4]
    assert other.loads == monitor.loads
    assert other.flip_rates["layer0"] == pytest.approx(monitor.flip_rates["layer0"], nan_ok=True)
    for name in ("layer0", "layer2"):
        assert torch.equal(other.last[name].pack(), monitor.last[name].pack())
        assert torch.equal(other.together[name], monitor.together[name])
    layers = dict(moe_layers(module))
    assert other.probe is not None
    assert other.probe.flip_rates(module.decoder, layers) == {"layer0": 0.0, "layer2": 0.0}  # nothing moved since


def test_a_balancer_s_range_is_drawn(tmp_path: Path) -> None:
    module = _biased(LanguageModel(MODEL, training()), 0.5)
    _trainer(tmp_path, RouterMonitor(tmp_path, 1)).fit(module, _loader(torch.randint(256, (1, 4, 33))))
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    bias = module.decoder.blocks[0].feed_forward.router.balancer.bias
    (event,) = board.Scalars("router/layer0/bias_range")
    assert event.value == float(bias.max() - bias.min()) > 0


def test_a_step_of_several_micro_batches_is_recorded_once(tmp_path: Path) -> None:
    monitor = RouterMonitor(tmp_path, 1)
    trainer = _trainer(tmp_path, monitor, accumulate_grad_batches=3)
    trainer.fit(LanguageModel(MODEL, training()), _loader(torch.randint(256, (6, 4, 33))))
    assert monitor.steps == [1, 2]


def _trainer(folder: Path, *callbacks: lightning.Callback, **settings: Any) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=list(callbacks),
        logger=TensorBoardLogger(folder, name="", version=""),
        num_sanity_val_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def _loader(batches: Tensor) -> DataLoader[Tensor]:
    """batches (steps, batch, context + 1), one after the other."""
    return DataLoader(list(batches), batch_size=None)  # type: ignore[arg-type]


def _biased(module: LanguageModel, rate: float = 0.01) -> LanguageModel:
    for _, moe in moe_layers(module):
        moe.router.balancer = BiasBalancer(EXPERTS, rate)
    return module


def test_a_moe_inside_a_layer_that_few_tokens_reach_is_watched_too(tmp_path: Path) -> None:
    block = BlockConfig(AttentionConfig(heads=2), MoEConfig(12, 4, 2), depth_capacity=0.5)
    decoder = Decoder(DecoderConfig(vocab_size=256, dim=16, blocks=(block,)))
    (depth,) = decoder.blocks
    decoder(torch.randint(256, (2, 16)))
    chosen, probe = depth.choice, RouterProbe()
    probe.take(torch.randint(256, (1, 17)))
    layers = {"inner": depth.feed_forward}
    shares = []
    for bias in (1e4, 0.0, -1e4, 1e4, 1e4):  # all of the probe's tokens, some, none, all, all
        with torch.no_grad():
            depth.router.predictor_down_bias.fill_(bias)
        shares.append(probe.flip_rates(decoder, layers).get("inner"))
        assert depth.choice is chosen
    assert shares[2] is None and shares[4] == 0.0
    assert all(math.isnan(share) for share in (shares[0], shares[3]))
