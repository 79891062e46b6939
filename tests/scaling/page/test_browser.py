"""A browser opens the page from the disk: every figure is drawn, nothing is complained of, nothing is asked for."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from toolkit.scaling.page.page import write_page
from toolkit.scaling.report_figure import ReportFigure

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["background-networking", "component-update", "sync", "gpu", "quic"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def visit(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's DOM once its scripts have run, and what the browser's console says of it."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
    command += [f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0", "--window-size=1400,1000"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=10000", "--dump-dom", page.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return run.stdout, [line for line in run.stderr.splitlines() if "CONSOLE" in line]


def planted(page: Path, copy: Path, what: str) -> Path:
    """A copy of the page with something at its end."""
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{what}</body>"), encoding="utf-8")
    return copy


def plots(dom: str) -> list[str]:
    """The DOM of each figure that plotly has drawn into."""
    return re.split(r'class="plot js-plotly-plot"', dom)[1:]


def test_every_figure_is_drawn_without_a_complaint(page: Path, figures: list[ReportFigure], tmp_path: Path) -> None:
    dom, console = visit(page, tmp_path / "profile")
    assert console == []
    drawn = plots(dom)
    assert len(drawn) == len(figures)
    for plot, figure in zip(drawn, figures, strict=True):
        assert "main-svg" in plot
        marks = len(re.findall(r'class="trace |<image |class="point"', plot))
        assert marks >= len(figure.interactive.data) > 0, figure.path.name


@pytest.mark.parametrize(
    "what",
    [
        "<script>throw new Error('planted')</script>",
        "<img src='https://example.org/planted.png'>",  # the network, which the page's policy forbids
    ],
)
def test_the_check_itself_catches_what_is_wrong(page: Path, tmp_path: Path, what: str) -> None:
    _, console = visit(planted(page, tmp_path / "bad.html", what), tmp_path / "profile")
    assert console


def test_a_click_on_a_header_sorts_numbers_as_numbers(tmp_path: Path) -> None:
    cells = {"family": "times", "---": "---", "`moe`": "9.50 (9.1 to 9.9)", "`window`": "10.20", "`dense`": "unknown"}
    table = "".join(f"| {name} | {value} |\n" for name, value in cells.items())
    page = write_page(table, [], tmp_path / "page.html", "t")
    clicks = "".join(f"document.querySelectorAll('th')[{column}].click();" for column in (0, 1, 1))
    dom, console = visit(planted(page, tmp_path / "sorted.html", f"<script>{clicks}</script>"), tmp_path / "profile")
    assert console == []
    families = re.findall(r"<tr>\s*<td[^>]*><code>([^<]+)</code>", dom)
    assert families == ["dense", "window", "moe"]  # falling: words, then 10.20, then 9.50, not as text
    assert re.findall(r'<th[^>]*aria-sort="(\w+)"', dom) == ["descending"]
