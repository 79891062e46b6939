"""Windows of text are examples in which every next token is asked."""

from __future__ import annotations

import torch

from toolkit.data import Examples, as_examples


def test_a_window_asks_for_the_token_after_each_input() -> None:
    windows = torch.arange(24).view(3, 8)
    input_ids, labels = as_examples(windows)
    assert input_ids.shape == labels.shape == (3, 7)
    for row in range(3):
        for place in range(7):
            assert input_ids[row, place] == windows[row, place]
            assert labels[row, place] == windows[row, place + 1]


def test_examples_are_left_as_they_are() -> None:
    batch = Examples(torch.zeros(2, 4, dtype=torch.long), torch.full((2, 4), -100))
    assert as_examples(batch) is batch
