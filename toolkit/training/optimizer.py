"""AdamW in groups: matrices decay, everything else does not; with muP each has the rate of its kind."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from toolkit.models import Decoder
from toolkit.models.mup import learning_rate_factors
from toolkit.training.config import TrainingConfig

Kind = tuple[float, bool]
"""What parameters of one group have in common: what their learning rate is multiplied by, and whether they decay."""


def parameter_groups(model: nn.Module) -> dict[Kind, list[str]]:
    """The names of ``model``'s parameters by kind, in the order of :func:`build_optimizer`'s groups."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    embeddings |= {id(module.head.weight) for module in model.modules() if isinstance(module, Decoder) and module.head}
    factors = _factors(model)
    groups: dict[Kind, list[str]] = {}
    for name, parameter in model.named_parameters():
        decays = parameter.ndim >= 2 and id(parameter) not in embeddings
        groups.setdefault((factors.get(id(parameter), 1.0), decays), []).append(name)
    return {kind: groups[kind] for kind in sorted(groups, key=lambda kind: (kind[0] != 1, not kind[1]))}


def build_optimizer(model: nn.Module, config: TrainingConfig, kinds: Iterable[Kind] | None = None) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101) over ``model``'s parameters.

    Weight decay falls on the matrices inside the layers; the embedding, the head and the norms' vectors have none.

    The learning rate is the config's, in a :class:`toolkit.models.Decoder` with ``mup_base_dim`` times the factor that
    :func:`toolkit.models.mup.learning_rate_factors` gives a parameter. AdamW multiplies a weight by 1 - its own rate *
    weight_decay, so what has a smaller rate decays less in as many steps. The first group's rate is the config's own.

    Args:
        model: whose parameters are trained.
        config: rate, decay, betas, eps.
        kinds: of the groups, some of which may be empty: a whole model's, where ``model`` has some of its layers; by
            default ``model``'s own.
    """
    groups, parameters = parameter_groups(model), dict(model.named_parameters())
    settings = [
        {
            "params": [parameters[name] for name in groups.get((factor, decays), [])],
            "weight_decay": config.weight_decay * decays,
            "lr": config.learning_rate * factor,
        }
        for factor, decays in (groups if kinds is None else kinds)
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(settings, lr=config.learning_rate, betas=betas, eps=config.eps, fused=fused)


def _factors(model: nn.Module) -> dict[int, float]:
    """What each parameter of a decoder within ``model`` has its rate multiplied by, by its id."""
    found: dict[int, float] = {}
    for decoder in model.modules():
        if isinstance(decoder, Decoder):
            factors = learning_rate_factors(decoder, decoder.config)
            found |= {id(parameter): factors[name] for name, parameter in decoder.named_parameters()}
    return found
