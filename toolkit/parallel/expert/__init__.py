"""Expert parallelism: each process holds some experts of every MoE, and tokens travel to them and back."""

from toolkit.parallel.expert.dispatcher import AllToAllDispatcher
from toolkit.parallel.expert.shards import expert_parallel, expert_parameters
from toolkit.parallel.expert.traffic import ExchangedBytes, exchanged_bytes

__all__ = [
    "AllToAllDispatcher",
    "ExchangedBytes",
    "exchanged_bytes",
    "expert_parallel",
    "expert_parameters",
]
