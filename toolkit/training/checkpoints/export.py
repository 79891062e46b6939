"""A checkpoint's weights as one safetensors file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from toolkit.checks import require
from toolkit.files import replacing
from toolkit.training.checkpoints.folder import read_checkpoint

PREFIX = "decoder."
"""Of the decoder's parameters in a ``LanguageModel``."""


def export_safetensors(checkpoint: Path, path: Path) -> list[str]:
    """Write the decoder's parameters and buffers, whole and contiguous, to one safetensors file.

    Args:
        checkpoint: a file or a folder.
        path: of the file; it is there whole or not at all.

    Returns:
        The tensors' names, as ``Decoder.state_dict`` has them.

    Raises:
        ImportError: if safetensors, which is an extra, is not installed.
        CorruptCheckpoint: if the checkpoint is not whole.
        ValueError: if it holds no decoder.
    """
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise ImportError("safetensors is not installed: pip install 'sparse-toolkit[hf]'") from None
    state: dict[str, Tensor] = read_checkpoint(checkpoint).get("state_dict", {})
    # Copies, since the format refuses tensors that share memory, as tied weights do.
    names = [name for name in state if name.startswith(PREFIX)]
    weights = {name.removeprefix(PREFIX): state[name].contiguous().clone() for name in names}
    require(bool(weights), "checkpoint", str(checkpoint), "of a run: it holds no decoder's weights")
    with replacing(path) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    return sorted(weights)
