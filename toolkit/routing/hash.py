"""Hash routing: a token's experts stand in a table by its id, and nothing is learned about the choice."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from toolkit.checks import require, require_choice, require_positive
from toolkit.routing import router
from toolkit.routing.assignment import Assignment
from toolkit.routing.fixed import FixedRouter, certain, equal_gates
from toolkit.routing.scores import KEPT, SCORES, normalizes, project, scaled_gates
from toolkit.work import Work


class HashRouter(FixedRouter):
    """Each token goes to the ``top_k`` experts that a fixed table gives for its id in the vocabulary.

    Causal: a token's experts depend on its own id alone, in training and evaluation alike. The forward needs
    ``token_ids``. The table is the buffer ``table`` int64 (vocab_size, top_k), in the checkpoint.

    Without ``dim`` the gates are 1 / top_k and there is nothing to learn (Roller et al. 2021). With it a linear
    gate scores the token and the experts of the table are weighted by their scores, divided by their sum and times
    ``scale`` (DeepSeek-V4's hash layers): the choice is fixed, its weights are learned.

    Args:
        num_experts: how many experts there are.
        top_k: experts per token.
        vocab_size: rows of the table.
        table: ``"random"`` draws each id's experts without replacement; ``"balanced"`` goes through the ids from the
            most frequent on and gives each the experts with the least tokens so far (Roller et al.'s balanced hash).
        frequencies: how often each id occurs, vocab_size numbers; for ``"balanced"`` only.
        dim: width of a token, for a learned gate; None for none.
        score: the gate's score function: ``"softmax"``, ``"sigmoid"`` or ``"sqrt_softplus"``.
        normalize: divide the gates by their sum. None means ``top_k > 1``: one normalised gate cannot learn, of which
            True with ``top_k=1`` warns.
        scale: what learned gates are multiplied by.
        seed: of the random table; hash layers want different ones.
        losses: auxiliary losses of the learned gate; none by default.

    Raises:
        ValueError: if a setting is out of its range, unknown, or has no use beside the others; in the forward if
            there are no ``token_ids``.

    Source: Roller et al. 2021 (arXiv 2106.04426), section 3.
    """

    table: Tensor

    def __init__(
        self,
        num_experts: int,
        top_k: int = 1,
        *,
        vocab_size: int,
        table: str = "random",
        frequencies: Sequence[float] | Tensor | None = None,
        dim: int | None = None,
        score: str = "sqrt_softplus",
        normalize: bool | None = None,
        scale: float = 1.0,
        seed: int = 0,
        losses: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__(num_experts, top_k, losses)
        require_positive(vocab_size=vocab_size, scale=scale)
        require_choice("table", table, ("random", "balanced"))
        require_choice("score", score, tuple(SCORES))
        fits = (frequencies is None) == (table == "random")
        require(fits, "frequencies", frequencies, "given with table='balanced' and only then")
        require(dim is not None or not self.losses, "losses", losses, "empty without dim: there is no gate to train")
        self.score_function, self.scale = score, scale
        self.normalize = normalizes(top_k, normalize if dim is not None else None, "normalize=True")
        self.seed = seed
        self.frequencies = None if frequencies is None else torch.as_tensor(frequencies, device="cpu").tolist()
        given = vocab_size if self.frequencies is None else len(self.frequencies)
        require(given == vocab_size, "frequencies", f"{given} numbers", f"vocab_size={vocab_size}")
        self.register_buffer("table", torch.empty(vocab_size, top_k, dtype=torch.int64))
        require(dim is None or dim > 0, "dim", dim, "positive, or None")
        self.dim = dim
        self.weight = None if dim is None else nn.Parameter(torch.empty(num_experts, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The table, and the gate, where there is one, normal with standard deviation dim ** -0.5."""
        with torch.no_grad():
            self.table.copy_(self._made())
        if self.weight is not None:
            nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)

    def _made(self) -> Tensor:
        """The table, on the CPU."""
        with torch.device("cpu"):
            if self.frequencies is None:
                return random_table(len(self.table), self.num_experts, self.top_k, self.seed)
            return balanced_table(self.frequencies, self.num_experts, self.top_k)

    def score(self, x: Tensor) -> Tensor:
        """x (tokens, dim) -> logits (tokens, num_experts), fp32; zeros without a gate."""
        return super().score(x) if self.weight is None else project(x, self.weight)

    def route(
        self, logits: Tensor, *, token_ids: Tensor | None, sequence_ids: Tensor | None, valid: Tensor | None
    ) -> Assignment:
        """logits (tokens, num_experts) -> tokens * top_k triples."""
        if token_ids is None:
            raise ValueError("token_ids=None: it must be the tokens' ids in the vocabulary, which a hash router needs")
        if valid is not None:
            token_ids = token_ids.masked_fill(~valid, 0)  # those of padding may be any numbers
        experts = self.replayed(self.table.index_select(0, token_ids))
        if self.weight is None:
            return router.table(logits, certain(logits, experts), experts, equal_gates(logits, self.top_k))
        scores = SCORES[self.score_function](logits)
        gates = scaled_gates(scores.raw.gather(1, experts), self.normalize, self.scale)
        return router.table(logits, scores.probabilities, experts, gates)

    def work(self, seq_len: int) -> list[Work]:
        """The gate's product where there is one; looking up is none."""
        return [] if self.weight is None else [Work.dense("router", seq_len * self.weight.numel())]

    def kept_numbers(self) -> int:
        """What the gate's score function keeps, where there is a gate."""
        return 0 if self.weight is None else KEPT[self.score_function] * self.num_experts

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        gate = "" if self.weight is None else f", dim={self.weight.shape[1]}, score={self.score_function!r}"
        return f"{super().extra_repr()}, vocab_size={len(self.table)}{gate}"


def random_table(vocab_size: int, num_experts: int, top_k: int, seed: int) -> Tensor:
    """int64 (vocab_size, top_k): experts drawn without replacement for each id, the same for the same seed."""
    draws = torch.rand(vocab_size, num_experts, generator=torch.Generator().manual_seed(seed))
    return draws.argsort(dim=-1)[:, :top_k].contiguous()


def balanced_table(frequencies: list[float], num_experts: int, top_k: int) -> Tensor:
    """int64 (vocab_size, top_k): each id, the most frequent first, gets the experts with the least tokens so far.

    Ids that never occurred come last and go to the experts with the fewest ids.

    Raises:
        ValueError: if a frequency is negative or not finite.
    """
    sound = all(0 <= frequency < float("inf") for frequency in frequencies)
    require(sound, "frequencies", frequencies if len(frequencies) < 16 else "...", "finite and 0 or more")
    table = torch.zeros(len(frequencies), top_k, dtype=torch.int64)
    loads = [(0.0, 0, expert) for expert in range(num_experts)]  # tokens, ids, expert: a heap
    unseen = False
    for token_id in sorted(range(len(frequencies)), key=lambda token_id: -frequencies[token_id]):
        if frequencies[token_id] == 0 and not unseen:
            loads, unseen = sorted((0.0, ids, expert) for _, ids, expert in loads), True
        least = [heapq.heappop(loads) for _ in range(top_k)]
        table[token_id] = torch.tensor([expert for _, _, expert in least])
        for tokens, ids, expert in least:
            heapq.heappush(loads, (tokens + frequencies[token_id], ids + 1, expert))
    return table
