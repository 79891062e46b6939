"""Frequent words: aggregation over the whole context."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolkit.checks import require, require_positive
from toolkit.data.synthetic.draws import Draws, Ints
from toolkit.data.synthetic.task import Row, Task, mean_chance

NOISE, ASK, FIRST_WORD = range(3)


@dataclass(frozen=True)
class FrequentWords(Task):
    """Shuffled words of zeta-distributed counts, then ``[ASK]`` -> those of rank 2, 3, ... by frequency.

    RULER's frequent words extraction (Hsieh et al., 2024): the word of rank r occurs about n r^-alpha / zeta(alpha)
    times in a context of n; the first rank is noise, whose token is always the same and is never asked. The asked words
    and the next have different counts, so there is one right answer. It is a task of counting, so one who counts
    solves it: leaks by token frequency are not asked about.

    Token ids: NOISE 0, ASK 1, words.

    Args:
        length: tokens in a row, the given part of the answer included.
        top: words asked: ranks 2 to top + 1.
        alpha: of the zeta distribution, above 1; flatter is harder.
        words: ids of words.

    meta: ``rank`` and ``count`` (batch, top): of the asked word.

    Raises:
        ValueError: the context is too short for different counts, or there are fewer words than occur.
    """

    length: int = 256
    top: int = 3
    alpha: float = 2.0
    words: int = 64

    def __post_init__(self) -> None:
        self.require_whole()
        require_positive(top=self.top)
        require(self.alpha > 1, "alpha", self.alpha, "above 1")
        require(self.length > self.top, "length", self.length, f"more than top={self.top}")
        counts = self._counts
        ranked = [*counts, 0][: self.top + 1]
        enough = len(ranked) == self.top + 1 and all(np.diff(ranked) < 0)
        right = f"long enough for words of ranks 2 to {self.top + 2} to occur differently often, not {ranked} times"
        require(enough, "length", self.length, right)
        require(self.words >= len(counts), "words", self.words, f"at least the {len(counts)} that occur")

    @property
    def answer_length(self) -> int:
        """The words asked."""
        return self.top

    @property
    def vocab_size(self) -> int:
        """Noise, ASK and the words."""
        return FIRST_WORD + self.words

    @property
    def chance(self) -> float:
        """Any word that is not already told."""
        return mean_chance([self.words - told for told in range(self.top)])

    @property
    def answer_chance(self) -> float:
        """One of the ordered choices of ``top`` different words."""
        return float(np.prod([1 / (self.words - told) for told in range(self.top)]))

    @property
    def counting_chance(self) -> float:
        """All: counting is the task."""
        return 1.0

    @property
    def _context(self) -> int:
        return self.length - self.top

    @property
    def _counts(self) -> list[int]:
        """How often the words of ranks 2, 3, ... occur, down to once."""
        from scipy.special import zeta

        scale = self._context / float(zeta(self.alpha))
        last = int(scale ** (1 / self.alpha)) + 1
        counts = (scale * np.arange(2, last + 1, dtype=float) ** -self.alpha).astype(int)
        return [int(count) for count in counts if count > 0]

    def _row(self, draws: Draws) -> Row:
        counts = np.array(self._counts)
        words: Ints = FIRST_WORD + draws.distinct(self.words, len(counts))
        context = np.full(self._context, NOISE)
        context[: counts.sum()] = np.repeat(words, counts)
        answer = words[: self.top]
        tokens = np.concatenate([draws.shuffled(context), [ASK], answer[:-1]])
        meta = {"rank": np.arange(2, self.top + 2), "count": counts[: self.top]}
        return Row(tokens, np.arange(self._context, self.length), answer, np.zeros(self.top, dtype=np.int64), meta)
