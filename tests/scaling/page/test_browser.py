"""A browser opens the page from the disk: every figure is drawn, nothing is complained of, nothing is asked for."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from browser import browser, visit

from toolkit.scaling.page.page import write_page
from toolkit.scaling.report_figure import ReportFigure


@pytest.fixture(autouse=True)
def _with_a_browser() -> None:
    browser()


def planted(page: Path, copy: Path, what: str = "", script: str = "") -> Path:
    """A copy of the page with something at its end; a script is one that its policy allows."""
    text = page.read_text(encoding="utf-8")
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        text = text.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
        what += f"<script>{script}</script>"
    copy.write_text(text.replace("</body>", f"{what}</body>"), encoding="utf-8")
    return copy


def plots(dom: str) -> list[str]:
    """The DOM of each figure that plotly has drawn into."""
    return re.split(r'class="plot(?: wide)? js-plotly-plot"', dom)[1:]


def test_every_figure_is_drawn_without_a_complaint(page: Path, figures: list[ReportFigure], tmp_path: Path) -> None:
    dom, console = visit(page.as_uri(), tmp_path / "profile")
    assert console == []
    drawn = plots(dom)
    assert len(drawn) == len(figures)
    for plot, figure in zip(drawn, figures, strict=True):
        assert "main-svg" in plot
        marks = len(re.findall(r'class="trace |<image |class="point"', plot))
        assert marks >= len(figure.interactive.data) > 0, figure.path.name
    assert not re.search(r'd="[^"]*NaN', dom)


@pytest.mark.parametrize(
    ("what", "script"),
    [
        ("", "throw new Error('planted')"),
        ("<script>document.title = 'ran'</script>", ""),  # which no hash allows
        ("<p onclick='f()'>x</p><img src=x onerror=\"document.title = 'ran'\">", ""),
        ("<img src='https://example.org/planted.png'>", ""),  # the network, which the page's policy forbids
    ],
)
def test_the_check_itself_catches_what_is_wrong(page: Path, tmp_path: Path, what: str, script: str) -> None:
    dom, console = visit(planted(page, tmp_path / "bad.html", what, script).as_uri(), tmp_path / "profile")
    assert console
    assert "<title>ran" not in dom


def test_html_in_a_report_runs_nothing(tmp_path: Path) -> None:
    text = "# <script>document.title = 'ran'</script>\n\n<img src=\"data:,\" onerror=\"document.title = 'ran'\">\n"
    dom, console = visit(write_page(text, [], tmp_path / "page.html", "still").as_uri(), tmp_path / "profile")
    assert "<title>still</title>" in dom
    assert console


def test_a_click_on_a_header_sorts_numbers_as_numbers(tmp_path: Path) -> None:
    cells = {"family": "times", "---": "---", "`moe`": "9.50 (9.1 to 9.9)", "`window`": "10.20", "`dense`": "unknown"}
    table = "".join(f"| {name} | {value} |\n" for name, value in cells.items())
    page = write_page(table, [], tmp_path / "page.html", "t")
    clicks = "".join(f"document.querySelectorAll('th button')[{column}].click();" for column in (0, 1, 1))
    sorted_page = planted(page, tmp_path / "sorted.html", script=clicks)
    dom, console = visit(sorted_page.as_uri(), tmp_path / "profile")
    assert console == []
    families = re.findall(r"<tr>\s*<td[^>]*><code>([^<]+)</code>", dom)
    assert families == ["dense", "window", "moe"]  # falling: words, then 10.20, then 9.50, not as text
    assert re.findall(r'<th[^>]*aria-sort="(\w+)"', dom) == ["descending"]
    assert dom.count("<button") == 2


def test_a_header_without_words_is_no_button(tmp_path: Path) -> None:
    page = write_page("| a | |\n| --- | --- |\n| 1 | 2 |\n", [], tmp_path / "page.html", "t")
    dom, _ = visit(page.as_uri(), tmp_path / "profile")
    assert dom.count("<button") == 1
    assert 'role="button"' not in dom


MEASURE = """
document.body.dataset.measured = JSON.stringify({
  page: [document.documentElement.scrollWidth, window.innerWidth],
  plots: Array.from(document.querySelectorAll(".plot"), (plot) => [
    plot.classList.contains("wide"), plot.clientWidth, plot.parentElement.clientWidth]),
  rem: parseFloat(getComputedStyle(document.documentElement).fontSize),
  fading: Array.from(document.querySelectorAll(".table"), (box) => [
    box.scrollWidth > box.clientWidth, box.classList.contains("more")]),
});"""


@pytest.mark.parametrize("width", [500, 1400])
def test_on_a_phone_panels_scroll_within_the_page(page: Path, tmp_path: Path, width: int) -> None:
    measured = planted(page, tmp_path / "measured.html", script=MEASURE)
    dom, _ = visit(measured.as_uri(), tmp_path / "profile", width)
    found = re.search(r'data-measured="([^"]+)"', dom)
    assert found
    sizes = json.loads(found[1].replace("&quot;", '"'))
    assert sizes["page"][0] <= sizes["page"][1]  # the page itself never scrolls sideways
    assert {wide for wide, _, _ in sizes["plots"]} == {True, False}
    for wide, plot, around in sizes["plots"]:
        assert plot == (max(around, 44 * sizes["rem"]) if wide else around)
    assert any(wide and plot > around for wide, plot, around in sizes["plots"]) == (width == 500)
    assert all(scrolls == fades for scrolls, fades in sizes["fading"])
