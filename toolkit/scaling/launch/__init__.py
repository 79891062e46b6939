"""Where a sweep's runs are trained: this process, processes of this machine, jobs of a SLURM cluster."""

from toolkit.scaling.launch.claim import ClaimLostError, RunClaims
from toolkit.scaling.launch.launcher import LAUNCHERS, Ended, Launcher
from toolkit.scaling.launch.local import LocalLauncher, ThisProcess
from toolkit.scaling.launch.queue import SweepQueue
from toolkit.scaling.launch.settings import SlurmSettings, SweepSettings
from toolkit.scaling.launch.slurm import SlurmLauncher
from toolkit.scaling.launch.work import SweepWork

__all__ = [
    "LAUNCHERS",
    "ClaimLostError",
    "Ended",
    "Launcher",
    "LocalLauncher",
    "RunClaims",
    "SlurmLauncher",
    "SlurmSettings",
    "SweepQueue",
    "SweepSettings",
    "SweepWork",
    "ThisProcess",
]
