"""Checks of a long run's sizes, from shapes alone: what its memory goes to, and whether data or model limits it."""

from __future__ import annotations

from toolkit.checks import require_positive
from toolkit.compute import cost, memory
from toolkit.models import DecoderConfig
from toolkit.parallel import ParallelConfig
from toolkit.training.check.finding import Finding, graded
from toolkit.training.config import TrainingConfig
from toolkit.training.precision import resolve_precision

OPTIMAL = 20.0
"""Compute-optimal tokens for each parameter that a token uses (Hoffmann et al. 2022, arXiv 2203.15556)."""

NEAR = 4.0
"""Up to this factor from it, loss is near its best for the compute: isoFLOP curves are flat."""

FULL = 0.9
"""Of a device's memory that may be planned for."""


def check_memory(
    model: DecoderConfig, training: TrainingConfig, device_bytes: float, parallel: ParallelConfig | None = None
) -> Finding:
    """Whether training fits into a device, and which component takes most.

    Args:
        model: the decoder.
        training: batch, context, precision and recomputation.
        device_bytes: of one device.
        parallel: processes; None for one.

    Raises:
        ValueError: if ``device_bytes`` is not positive, or as :func:`toolkit.compute.memory` does.
    """
    require_positive(device_bytes=device_bytes)
    parallel = ParallelConfig() if parallel is None else parallel
    resolved = resolve_precision(training.precision, parallel.accelerator)
    wide = 2 if resolved == "64-true" else 1  # every number twice as wide as in fp32
    precision = "32-true" if wide == 2 else resolved
    batch_size = parallel.local_batch(training.batch_size)
    kept = memory(model, batch_size, training.context, precision, parallel, training.recompute)
    total, largest = wide * kept.training, kept.components[kept.dominant] / kept.training
    figure = (
        f"{total / 1e9:.3g} GB of {device_bytes / 1e9:.3g} in {resolved}; {kept.dominant} dominate with {largest:.0%}"
    )
    return Finding("memory", graded(total / device_bytes, FULL, 1.0), figure)


def check_tokens(model: DecoderConfig, training: TrainingConfig, tokens: float | None = None) -> Finding:
    """Whether the model is undertrained or too small, by tokens for each parameter that a token uses.

    Args:
        model: the decoder.
        training: its steps, batch and context.
        tokens: that it is trained on; None for those of all steps.

    Raises:
        ValueError: if ``tokens`` is not positive.
    """
    active = cost(model, training.context).total_active_parameters
    tokens = training.steps * training.tokens_per_step if tokens is None else tokens
    require_positive(tokens=tokens)
    ratio = tokens / active
    state = "undertrained: a smaller model would do better" if ratio < OPTIMAL / NEAR else "near the compute optimum"
    state = "capacity-limited: a larger model would do better" if ratio > OPTIMAL * NEAR else state
    figure = (
        f"{tokens:.3g} tokens for {active:.3g} active parameters: {ratio:.3g} each ({OPTIMAL:g} is optimal), {state}"
    )
    return Finding("tokens", "pass" if OPTIMAL / NEAR <= ratio <= OPTIMAL * NEAR else "warn", figure)
