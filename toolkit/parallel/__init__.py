"""How one training run is spread over devices."""

from toolkit.parallel.config import ParallelConfig, is_main_process
from toolkit.parallel.processes import leave_process_group

__all__ = ["ParallelConfig", "is_main_process", "leave_process_group"]
