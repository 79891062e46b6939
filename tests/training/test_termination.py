"""SIGTERM as a note: it ends nothing by itself, and what stands around the block learns of it."""

from __future__ import annotations

import pickle
import signal
import threading
from collections.abc import Iterator

import pytest

from toolkit.training.termination import START_AGAIN, AskedToEnd, TermNote, ending_on_term


@pytest.fixture(autouse=True)
def own_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_note_inside_another_hears_what_was_asked_before_it_and_tells_what_was_asked_in_it() -> None:
    with TermNote() as outer:
        with TermNote() as first:
            assert not first.asked
            signal.raise_signal(signal.SIGTERM)
            assert (first.asked, outer.asked) == (True, False)
        assert outer.asked
        with TermNote() as second:
            assert second.asked
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # and the process still lives: its work is done


def test_another_handler_is_called_when_the_block_came_to_its_own_end() -> None:
    with ending_on_term():
        with pytest.raises(AskedToEnd) as left, TermNote():
            signal.raise_signal(signal.SIGTERM)
        assert left.value.code == START_AGAIN
        assert pickle.loads(pickle.dumps(left.value)).words == left.value.words
        with pytest.raises(ZeroDivisionError), TermNote():  # an error of its own is not hidden
            signal.raise_signal(signal.SIGTERM)
            _ = 1 // 0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_who_takes_the_signal_inside_is_left_it_only_until_it_is_taken_back() -> None:
    with TermNote() as term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        term.listen()
        signal.raise_signal(signal.SIGTERM)
        assert term.asked


def test_in_another_thread_it_changes_nothing() -> None:
    found = []

    def work() -> None:
        with TermNote():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]
