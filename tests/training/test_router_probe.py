"""The probe leaves no trace, and keeps the first sequence it was shown."""

from __future__ import annotations

import math

import torch
from gloo import run_processes
from probe_work import found, plain, probed
from training_cases import MODEL, training

from toolkit.parallel import ParallelConfig
from toolkit.routing import BiasBalancer, RandomRouter
from toolkit.training import LanguageModel
from toolkit.training.router_layers import moe_layers
from toolkit.training.router_probe import RouterProbe


def biased() -> LanguageModel:
    module = LanguageModel(MODEL, training())
    for _, moe in moe_layers(module):
        moe.router.balancer = BiasBalancer(4)
    return module


def test_modes_counts_and_the_last_forward_stay_as_they_were() -> None:
    module, windows = biased(), torch.randint(256, (3, 33))
    module.decoder.blocks[1].eval()
    module.training_step(windows, 0)
    layers = dict(moe_layers(module))
    last = {name: moe.assignment for name, moe in layers.items()}
    modes = [part.training for part in module.modules()]
    pending = [moe.router.balancer.pending.clone() for moe in layers.values()]
    probe = RouterProbe()
    probe.take(windows)
    probe.flip_rates(module.decoder, layers)
    assert [part.training for part in module.modules()] == modes
    assert all(moe.assignment is last[name] for name, moe in layers.items())
    assert all(torch.equal(moe.router.balancer.pending, old) for moe, old in zip(layers.values(), pending, strict=True))


def test_random_numbers_go_on_as_though_it_had_not_run() -> None:
    module = LanguageModel(MODEL, training())
    module.decoder.blocks[0].feed_forward.router = RandomRouter(4, 2)  # draws in eval mode too
    probe = RouterProbe()
    probe.take(torch.randint(256, (3, 33)))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    probe.flip_rates(module.decoder, dict(moe_layers(module)))
    assert torch.equal(torch.rand(3), expected)


def test_the_first_sequence_stays_and_before_there_is_one_nothing_is_routed() -> None:
    module, windows, probe = LanguageModel(MODEL, training()), torch.randint(256, (3, 33)), RouterProbe()
    layers = dict(moe_layers(module))
    assert probe.flip_rates(module.decoder, layers) == {}
    probe.take(windows)
    probe.take(windows + 1)
    assert probe.tokens is not None
    assert torch.equal(probe.tokens, windows[:1, :-1])
    first = probe.flip_rates(module.decoder, layers)
    assert set(first) == set(layers)
    assert all(math.isnan(rate) for rate in first.values())
    assert probe.flip_rates(module.decoder, layers) == {"layer0": 0.0, "layer2": 0.0}  # no weight moved


def test_every_process_routes_the_first_one_s_whole_sequence() -> None:
    """Of readers of other sequences, and of processes that share theirs."""
    layouts = [ParallelConfig(data=2), ParallelConfig(shard=2), ParallelConfig(context=2)]
    right = plain(probed())
    for each in run_processes(2, found, layouts):
        assert each == [right] * len(layouts)
