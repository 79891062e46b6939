"""How one training run is spread over devices."""

from toolkit.parallel.config import ParallelConfig, is_main_process

__all__ = ["ParallelConfig", "is_main_process"]
