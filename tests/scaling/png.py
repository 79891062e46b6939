"""Reads PNG files by hand, for the tests of figures."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from toolkit.scaling.report_figure import ReportFigure


def pixels(path: Path) -> np.ndarray:
    """Read a PNG by hand, checking every chunk's checksum; returns the decompressed, filtered bytes."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, body, kinds = 8, b"", []
    while at < len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        chunk = data[at + 8 : at + 8 + length]
        assert int.from_bytes(data[at + 8 + length : at + 12 + length], "big") == zlib.crc32(kind + chunk)
        body += chunk if kind == b"IDAT" else b""
        kinds.append(kind)
        at += 12 + length
    assert kinds[-1] == b"IEND"
    return np.frombuffer(zlib.decompress(body), dtype=np.uint8)


def check(figure: ReportFigure) -> None:
    """A whole picture that is not blank, with a caption of whole sentences."""
    assert len(np.unique(pixels(figure.path))) > 20
    assert figure.caption.endswith(".")
