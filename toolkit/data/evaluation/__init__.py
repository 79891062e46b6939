"""Evaluation over length: sliding-window perplexity, loss by position, effective length.

A model is any callable from input_ids (batch, length) int64 to logits (batch, length, vocab_size).
"""

from toolkit.data.evaluation.effective_length import effective_length
from toolkit.data.evaluation.perplexity import NLL, sliding_perplexity
from toolkit.data.evaluation.positions import PositionLoss, loss_by_position

__all__ = ["NLL", "PositionLoss", "effective_length", "loss_by_position", "sliding_perplexity"]
