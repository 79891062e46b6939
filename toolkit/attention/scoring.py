"""How a product of query and key becomes a weight, beside the pattern."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scoring:
    """The score of query i (head h) and key j, in this order, and the softmax over the keys that i sees.

    s = scale * (q . k);  s = softcap * tanh(s / softcap);  s = s - slope_h * abs(i - j);
    p = exp(s) / (sum of exp(s) + exp(sink_h));  p = p * keep / (1 - dropout_p).

    Attributes:
        scale: of the product.
        softcap: 0 for none. Gemma 2 (arXiv 2408.00118), section 2.
        alibi_slopes: (heads,) fp32, constants. Press et al. 2022 (arXiv 2108.12409); symmetric, as in
            FlashAttention.
        sink_logits: (heads,): learned, in the denominator only, neither scaled nor capped nor masked. The
            log-sum-exp includes them. gpt-oss (arXiv 2508.10925), section 2.
        dropout_p: chance that a weight is dropped after normalisation; the log-sum-exp knows nothing of it.
        seed: one int64, on the device: with batch row, head and absolute positions it decides each weight.
        first_head: number of the first query head among all heads, by which dropout counts: above 0 where only some
            of the heads are here.
    """

    scale: float
    softcap: float = 0.0
    alibi_slopes: Tensor | None = None
    sink_logits: Tensor | None = None
    dropout_p: float = 0.0
    seed: Tensor | None = None
    first_head: int = 0
