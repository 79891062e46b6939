"""One finished run of a study: the row every table, figure and claim is made from."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.checks import require_choice


@dataclass(frozen=True)
class RunResult:
    """What one run planned, spent and reached.

    FLOPs are training FLOPs of the whole run (forward and backward). ``seconds`` is the time the
    run's steps take when nothing else runs beside it (steps x the isolated time of one step), the
    figure that claims at equal seconds rest on; ``seconds_wall`` is what it took in the sweep.
    """

    run: str  # unique name, e.g. "moe-dim32-flops3e11-seed0"
    family: str  # e.g. "dense", "moe", "moe+window"
    budget: float  # FLOPs, `exact` convention
    dim: int  # model width, the size axis of the grid
    seed: int
    parameters: int  # every parameter
    active_parameters: int  # those that one token uses
    steps: int
    tokens: int
    epochs: float  # tokens / unique training tokens
    flops_planned: float  # `exact`: visible pairs only, router counted
    flops_spent: float  # the same, counted as the run went
    flops_palm: float
    flops_hardware: float
    learning_rate: float
    bits_per_byte: float  # validation, the same windows for every run
    train_loss: float  # nats per token, mean of the last tenth of the steps
    seconds: float
    seconds_wall: float
    dropped_share: float  # of (token, expert) assignments; 0 where dropless or dense, nan where routing diverged
    max_violation: float  # mean over layers at the end; nan for a dense model
    token_entropy: float  # nats, mean over layers at the end; nan for a dense model
    layers: int = 0
    batch_size: int = 0
    embedding_parameters: int = 0  # one for each kind of parameter: which of them count as "N" moves a law's exponents
    head_parameters: int = 0  # 0 where the head is the embedding's matrix
    attention_parameters: int = 0
    feed_forward_parameters: int = 0
    expert_parameters: int = 0
    active_expert_parameters: int = 0  # of the routed experts, those that one token uses
    shared_expert_parameters: int = 0
    router_parameters: int = 0
    norm_parameters: int = 0
    training_bytes: int = 0  # memory of a training step on one device, as planned
    stage: str = "grid"  # of the study: "search" for a learning rate, "grid", or "prediction"
    code: str = ""  # the code's version that trained it
    corpus: str = ""  # first 16 digits of the tokenised corpus' hash

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs of one token, ``exact`` convention."""
        return self.flops_spent / self.tokens

    @property
    def head_matrix(self) -> int:
        """Parameters of the output product, tied or not."""
        return self.head_parameters or self.embedding_parameters


COUNTS = ("active", "active_with_head", "active_total", "total")
"""Conventions of a model's size N, see :func:`size`."""


def size(row: RunResult, convention: str = "active_with_head") -> int:
    """N of a run, in a named convention of what counts.

    ``active``: what one token uses inside the layers: no embedding, no head (Kaplan et al. 2020).
    ``active_with_head``: and the matrix of the output product, tied or not: all that is multiplied with.
    ``active_total``: everything that one token uses, each matrix once (Hoffmann et al. 2022, of dense models).
    ``total``: every parameter, used or not.

    Raises:
        ValueError: for another convention.
    """
    require_choice("convention", convention, COUNTS)
    inside = row.active_parameters - row.embedding_parameters - row.head_parameters
    return {
        "active": inside,
        "active_with_head": inside + row.head_matrix,
        "active_total": row.active_parameters,
        "total": row.parameters,
    }[convention]
