"""Simple guessers without access to structure, fitted on some rows and tried on others, to find leaks.

The blind ones see where they are asked, the token there and the one before; the counting ones see besides how often
each token occurs up to there. None sees what stands where.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import numpy.typing as npt

from toolkit.data.synthetic import Task, TaskBatch

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Asked:
    """The asked tokens of a batch, one a line, and what a guesser may see of each."""

    def __init__(self, batch: TaskBatch, vocab_size: int) -> None:
        tokens, labels = batch.input_ids.numpy(), batch.labels.numpy()
        rows, self.place = np.nonzero(labels != -100)
        self.label = labels[rows, self.place]
        self.here = tokens[rows, self.place]
        self.before = tokens[rows, self.place - 1]
        seen = (tokens[row, : place + 1] for row, place in zip(rows, self.place, strict=True))
        self.counts: Array = np.array([np.bincount(one, minlength=vocab_size) for one in seen], dtype=float)
        self._sizes = tokens.shape[1], vocab_size

    def features(self, counting: bool) -> Array:
        """One-hot position, token and token before; counts and whether each occurs, if ``counting``; and a constant."""
        length, vocab_size = self._sizes
        ids = np.eye(vocab_size)
        parts = [np.eye(length)[self.place], ids[self.here], ids[self.before], np.ones((len(self.label), 1))]
        if counting:
            parts += [self.counts / self.counts.std(), (self.counts > 0).astype(float)]
        return np.concatenate(parts, axis=1)


def ridge(train: Asked, test: Asked, counting: bool) -> Ints:
    """A linear classifier by least squares on one-hot labels."""
    labels = np.unique(train.label)
    x, y = train.features(counting), np.eye(len(labels))[np.searchsorted(labels, train.label)]
    told = x.any(axis=0)  # columns that are zero throughout tell nothing
    x = x[:, told]
    weights = np.linalg.solve(x.T @ x + 1e-2 * len(x) / x.shape[1] * np.eye(x.shape[1]), x.T @ y)
    return labels[(test.features(counting)[:, told] @ weights).argmax(axis=1)]


def majority(train: Asked, test: Asked, key: str) -> Ints:
    """The label most often seen with this position, token or token before."""
    seen: dict[int, Counter[int]] = defaultdict(Counter)
    for cue, label in zip(getattr(train, key), train.label, strict=True):
        seen[int(cue)][int(label)] += 1
    fallback = Counter(train.label.tolist()).most_common(1)[0][0]
    return np.array([seen[int(cue)].most_common(1)[0][0] if seen[int(cue)] else fallback for cue in getattr(test, key)])


def extreme(train: Asked, test: Asked, sign: int) -> Ints:
    """The candidate that occurs most often (sign 1) or, of those that occur, least often (-1)."""
    labels = np.unique(train.label)
    counts = test.counts[:, labels]
    worth = np.where(counts > 0, sign * counts, -np.inf)
    # Ties are broken at random, by a fixed generator.
    return labels[(worth + np.random.default_rng(0).uniform(0, 0.5, worth.shape)).argmax(axis=1)]


def accuracies(task: Task, train: TaskBatch, test: TaskBatch) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy on the asked tokens of each blind and of each counting guesser."""
    known, new = Asked(train, task.vocab_size), Asked(test, task.vocab_size)
    blind = {key: majority(known, new, key) for key in ("place", "here", "before")}
    blind["ridge"] = ridge(known, new, counting=False)
    counting = {"most": extreme(known, new, 1), "least": extreme(known, new, -1), "ridge": ridge(known, new, True)}
    right = lambda guesses: {name: float((guess == new.label).mean()) for name, guess in guesses.items()}  # noqa: E731
    return right(blind), right(counting)


def bound(chance: float, rows: int) -> float:
    """4.5 standard deviations of the mean of ``rows`` independent guesses: passed by accident once in 300,000.

    A row's asked tokens depend on each other; taking one a row is the most that dependence can do.
    """
    return 4.5 * (chance * (1 - chance) / rows) ** 0.5
