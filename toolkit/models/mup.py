"""Maximal update parametrisation (muP): one learning rate for every width, found at a small one.

Write m = mup_base_dim / dim. A parameter's factor follows from which of its sides grow with the width:

| parameters | grow | standard deviation at the start | Adam's rate | in the forward pass |
|---|---|---|---|---|
| hidden: projections of attention, feed-forward, experts | both | fan_in ** -0.5 | times m | |
| output: routers and gates, finite in number | fan_in | fan_in ** -0.5 * m ** 0.5 | times m | |
| embedding | fan_out | mup_base_dim ** -0.5 | | |
| head, the embedding where it is tied | fan_in | mup_base_dim ** -0.5 | | logits times m |
| norms, biases, constants | fan_out | as always | | |

Hidden matrices, the embedding and the head are as in Table 8 of Yang et al. 2022, Tensor Programs V (arXiv
2203.03466), which lets one matrix be both embedding and head. Routers are as the output layer in their Table 3, which
needs no factor in the forward pass: the rate falls as 1 / fan_in, the variance as 1 / fan_in ** 2. (Malasnicki et al.
2025, arXiv 2508.09752, derive muP for routers and experts.)

At dim = mup_base_dim every factor is 1, and the model is the one without muP, bit for bit. Elsewhere a step of Adam
changes every layer's activations by as much as there. One rate times m for all parameters, from the standard start,
does so too, but for the embedding, whose steps shrink with m. Logits, of the head and of routers, start m ** 0.5 times
as large as there, and learn as much. What the rule leaves open:

- A head's width is meant to stay, and their number to grow: scores stay q k / sqrt(head_dim), where a growing head
  would need 1 / head_dim.
- Feed-forward and experts are meant to be as wide as ``dim`` times a constant, and the number of experts, of chosen
  experts and of layers to stay.
- AdamW multiplies a weight's decay by its rate, so hidden matrices decay m times as much.
- Adam's ``eps`` is not scaled: it is meant to be far below every gradient at every width.
"""

from __future__ import annotations

from torch import nn

from toolkit.checks import require
from toolkit.models.config import DecoderConfig

HIDDEN = (".qkv_proj", ".o_proj", ".gate_up_proj", ".up_proj", ".down_proj", ".gate_proj", ".predictor_up")
"""Ends of the names of matrices both of whose sides grow with the width."""

OUTPUT = (".router.weight", ".noise.weight", ".shared_gate.weight", ".mix", ".predictor_down")
"""Of those that map a token to a finite number of logits."""

OTHERS = (
    *("embedding.weight", "head.weight", "norm.weight", "bias", ".constant"),  # what is read or added, per channel
    *(".sink_logits", ".position", ".up", ".down"),  # sizes are a head's, or how many heads there are
)
"""Of those whose fan_in does not grow, and of the head, whose logits have the factor instead."""


def width_ratio(config: DecoderConfig) -> float:
    """m = mup_base_dim / dim; 1 without muP."""
    return 1.0 if config.mup_base_dim is None else config.mup_base_dim / config.dim


def is_output(name: str) -> bool:
    """Whether a decoder's parameter of this name maps a token to a finite number of logits."""
    return name.endswith(OUTPUT)


def learning_rate_factors(decoder: nn.Module, config: DecoderConfig) -> dict[str, float]:
    """What Adam's learning rate is multiplied by for each parameter's name; 1 for all without muP.

    Args:
        decoder: whose parameters they are.
        config: what it was made from.

    Raises:
        ValueError: with muP, naming a parameter for which no rule is known, such as a ``SoftRouter``'s ``scale``:
            its logits are cosines, for which the rule of the other routers is wrong.
    """
    names = [name for name, _ in decoder.named_parameters()]
    if config.mup_base_dim is None:
        return dict.fromkeys(names, 1.0)
    for name in names:
        right = f"None with a parameter {name!r}, for which no muP rule is known here"
        require(name.endswith((*HIDDEN, *OUTPUT, *OTHERS)), "mup_base_dim", config.mup_base_dim, right)
    ratio = width_ratio(config)
    return {name: ratio if name.endswith((*HIDDEN, *OUTPUT)) else 1.0 for name in names}
