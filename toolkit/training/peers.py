"""Watches, while a run trains, that its other processes are alive."""

from __future__ import annotations

from typing import Any

import lightning

from toolkit.parallel.failure import PeerWatch


class WatchPeers(lightning.Callback):
    """Starts a :class:`toolkit.parallel.failure.PeerWatch` when the processes have met.

    Args:
        watch: which; ``watch.naming()`` is to be around the trainer's ``fit``.
    """

    def __init__(self, watch: PeerWatch) -> None:
        self.watch = watch

    def on_fit_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Begin."""
        self.watch.start()
