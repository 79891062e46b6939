"""Tasks print as they are read, and nothing is evaluated."""

from __future__ import annotations

import pytest
from task_cases import CASES

from toolkit.data.synthetic import TASKS, Induction, Passkey, Task, parse_task


@pytest.mark.parametrize("task", [*CASES, *(kind() for kind in TASKS.values())], ids=str)
def test_a_task_reads_back_as_it_prints(task: Task) -> None:
    assert parse_task(str(task)) == task


def test_arguments_stand_in_order_or_by_name() -> None:
    assert parse_task("Passkey(512, depth=0.5)") == Passkey(length=512, depth=0.5)
    assert parse_task("Induction(32, [2, 9])") == Induction(length=32, distance=(2, 9))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("Passkeys()", "nothing is called Passkeys; it must be one of .*MQAR"),
        ("Passkey", "Passkey is neither a literal nor a call"),
        ("Passkey(", "task='Passkey"),
        ("Passkey(length=2**9)", r"2 \*\* 9 is neither"),
        ("Passkey(*[1])", "one by one"),
        ("Passkey(**{'length': 64})", "one by one"),
        ("Passkey(deep=0.5)", "deep"),
        ("Passkey(length='64')", "task="),
        ("Passkey(length=3)", "length=3: it must be at least"),
        ("__import__('os').system('true')", "is neither a literal nor a call"),
    ],
)
def test_what_is_no_task_is_refused(text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        parse_task(text)
