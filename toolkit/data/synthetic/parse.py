"""Tasks as text, so that a config file says ``Passkey(length=512, depth=0.5)`` and means it."""

from __future__ import annotations

from toolkit.calls import Calls
from toolkit.data.synthetic.copying import SelectiveCopy
from toolkit.data.synthetic.frequent_words import FrequentWords
from toolkit.data.synthetic.induction import Induction
from toolkit.data.synthetic.json_records import JsonKeyValue
from toolkit.data.synthetic.needles import Needles
from toolkit.data.synthetic.passkey import Passkey
from toolkit.data.synthetic.recall import MQAR
from toolkit.data.synthetic.sparse_induction import SparseInduction
from toolkit.data.synthetic.summary import FirstTokenRecall, GlobalSummary
from toolkit.data.synthetic.task import Task
from toolkit.data.synthetic.variables import VariableTracking

TASKS: dict[str, type[Task]] = {
    kind.__name__: kind
    for kind in (
        MQAR,
        Passkey,
        Needles,
        VariableTracking,
        SelectiveCopy,
        Induction,
        SparseInduction,
        FirstTokenRecall,
        GlobalSummary,
        JsonKeyValue,
        FrequentWords,
    )
}
"""Every task by its name."""


def parse_task(text: str) -> Task:
    """The task that ``text`` writes, such as ``"Induction(length=256, distance=(2, 200))"``: the inverse of ``str``.

    Only the names of tasks, called with literals, are understood: nothing is evaluated.

    Raises:
        ValueError: naming the text, what in it was not understood and the names known, or what the task refused.

    >>> parse_task("Passkey(512, depth=0.5)")
    Passkey(length=512, depth=0.5, digits=5, words=16)
    """
    task: Task = Calls("task", TASKS, (Task,)).read(text)
    return task
