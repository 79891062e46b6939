"""Synthetic long-context tasks: seeded to the last token, scored by exact match on what is asked.

>>> task = Induction(length=8, distance=4, symbols=10)
>>> batch = task.sample(batch=2, seed=0)
>>> batch.input_ids.shape, batch.asked.tolist(), task.chance == 1 / 9
(torch.Size([2, 8]), [[7], [7]], True)
>>> exact_match(batch.labels, batch).accuracy
1.0
"""

from toolkit.data.synthetic.copying import SelectiveCopy
from toolkit.data.synthetic.frequent_words import FrequentWords
from toolkit.data.synthetic.induction import Induction
from toolkit.data.synthetic.json_records import JsonKeyValue
from toolkit.data.synthetic.needles import Needles
from toolkit.data.synthetic.parse import TASKS, parse_task
from toolkit.data.synthetic.passkey import Passkey
from toolkit.data.synthetic.recall import MQAR
from toolkit.data.synthetic.scoring import Bucket, TaskScore, exact_match, score
from toolkit.data.synthetic.sparse_induction import SparseInduction
from toolkit.data.synthetic.summary import FirstTokenRecall, GlobalSummary
from toolkit.data.synthetic.task import NOT_ASKED, Task, TaskBatch
from toolkit.data.synthetic.variables import VariableTracking

__all__ = [
    "MQAR",
    "NOT_ASKED",
    "TASKS",
    "Bucket",
    "FirstTokenRecall",
    "FrequentWords",
    "GlobalSummary",
    "Induction",
    "JsonKeyValue",
    "Needles",
    "Passkey",
    "SelectiveCopy",
    "SparseInduction",
    "Task",
    "TaskBatch",
    "TaskScore",
    "VariableTracking",
    "exact_match",
    "parse_task",
    "score",
]
