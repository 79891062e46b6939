"""The page is the report's own text, holds every figure's data and picture, and refers to nothing outside itself."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from toolkit.scaling.document import markdown_table
from toolkit.scaling.page.page import write_page
from toolkit.scaling.report_figure import ReportFigure


class Reader(HTMLParser):
    """Text outside scripts and styles, the scripts, and every attribute that a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inside, self.words, self.scripts, self.loaded, self.tags = "", [], [], [], []  # type: ignore[var-annotated]
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:  # type: ignore[type-arg]
        self.tags.append(tag)
        if tag in ("script", "style"):
            self.inside = tag
            self.scripts += [""] if tag == "script" else []
        self.loaded += [(tag, value) for name, value in attrs if name in ("src", "srcset", "data", "poster")]
        self.loaded += [(tag, value) for name, value in attrs if tag == "link" and name == "href"]

    def handle_endtag(self, tag: str) -> None:
        self.inside = "" if tag == self.inside else self.inside

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif not self.inside:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def read(page: Path) -> Reader:
    return Reader(page.read_text(encoding="utf-8"))


def png(path: Path) -> Path:
    """The smallest there is: one pixel."""
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
    path.write_bytes(base64.b64decode(pixel))
    return path


def test_the_text_is_the_reports(read: Reader) -> None:
    for words in ("Is a < b ?", "ends & here", "Machine: an imagined one", "grid: {seeds: 2}"):
        assert words in read.text
    assert "Resolved configuration" in read.text
    assert not re.search(r"\*\*|`|\| ?---|!\[", read.text)  # no Markdown left as it was
    assert read.tags.count("table") == 1
    assert (read.tags.count("tr"), read.tags.count("th"), read.tags.count("td")) == (4, 4, 12)


def test_contents_lead_to_the_sections(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    contents = text[text.index("<nav") : text.index("</nav>")]
    links = re.findall(r'href="#([^"]+)">([^<]+)<', contents)
    assert [title for _, title in links] == ["Compute multiplier", "Figures", "The study"]
    assert all(f'id="{place}"' in text for place, _ in links)


def test_it_refers_to_nothing_outside_itself(read: Reader) -> None:
    assert read.loaded
    assert all(value.startswith("data:") for _, value in read.loaded)


def test_its_policy_allows_its_own_scripts_alone(page: Path, read: Reader) -> None:
    text = page.read_text(encoding="utf-8")
    policies = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    rules = dict(rule.strip().split(" ", 1) for rule in policies[0].split(";"))
    assert len(policies) == 1
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    run = [script for script in read.scripts if not script.startswith("{")]  # the others are data
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in run]
    assert rules["script-src"].split() == [f"'sha256-{each}'" for each in hashes]
    assert set(rules) == {"default-src", "script-src", "style-src", "img-src", "font-src"}


def test_a_figure_is_named_by_its_captions_first_sentence(page: Path) -> None:
    places = re.findall(r'<span class="plot[^"]*" role="(\w+)" aria-label="([^"]+)"', page.read_text(encoding="utf-8"))
    assert ("group", "IsoFLOP curves: all runs of the table.") in places
    assert {role for role, _ in places} == {"group"}


def test_a_bar_in_a_cell_is_one(tmp_path: Path) -> None:
    text = markdown_table("what | a", [["x | y", "`Causal() | Window(4)`"], ["`done \\| before`", "1"]])
    path = write_page(text, [], tmp_path / "page.html", "t")
    read = Reader(path.read_text(encoding="utf-8"))
    assert read.tags.count("td") == 4
    for words in ("x | y", "Causal() | Window(4)", "done | before"):
        assert words in read.text
    unescaped = [re.findall(r"(?<!\\)\|", line) for line in text.splitlines()]
    assert {len(bars) for bars in unescaped} == {3}  # GitHub parts cells at every other bar, in code too


def test_plotly_stands_in_it_once(read: Reader) -> None:
    assert sum(script == get_plotlyjs() for script in read.scripts) == 1


def test_every_figure_has_its_data_and_its_picture(read: Reader, figures: list[ReportFigure]) -> None:
    data = [json.loads(script) for script in read.scripts if script.startswith("{")]
    assert [len(one["data"]) for one in data] == [len(figure.interactive.data) for figure in figures]
    stills = [value for tag, value in read.loaded if tag == "img"]
    pictures = [base64.b64decode(value.removeprefix("data:image/png;base64,")) for value in stills]
    assert pictures == [figure.path.read_bytes() for figure in figures]
    for figure in figures:
        assert " ".join(figure.caption.replace("`", "").split())[:60] in read.text


def test_command_and_runs_stand_under_each(read: Reader, figures: list[ReportFigure]) -> None:
    assert read.text.count("Drawn by python experiments/dense_vs_sparse.py --preset demo from") == len(figures)
    assert all(figure.runs for figure in figures)


def test_the_title_is_text(page: Path) -> None:
    assert "<title>A study of &lt;families&gt;</title>" in page.read_text(encoding="utf-8")


def test_a_figure_cannot_end_its_script(tmp_path: Path) -> None:
    title = "</script><b>&amp;\u2028"
    figure = ReportFigure(png(tmp_path / "a.png"), "A.", interactive=go.Figure(layout_title_text=title))
    path = write_page("![a](a.png)", [figure], tmp_path / "page.html", "t")
    read = Reader(path.read_text(encoding="utf-8"))
    [data] = [json.loads(script) for script in read.scripts if script.startswith("{")]
    assert data["layout"]["title"]["text"] == title
    assert "b" not in read.tags


def test_a_figure_may_be_a_dict_or_have_no_twin(tmp_path: Path) -> None:
    plain = ReportFigure(png(tmp_path / "a.png"), "A.")
    path = write_page("![a](a.png)", [plain], tmp_path / "plain.html", "t")
    read = Reader(path.read_text(encoding="utf-8"))
    assert [tag for tag, _ in read.loaded if tag == "img"] == ["img"]
    assert get_plotlyjs() not in read.scripts  # which nothing needs
    twin = plain.backed(interactive={"data": [{"type": "bar", "y": [1, 2]}], "layout": {"height": 321}})
    text = write_page("![a](a.png)", [twin], tmp_path / "twin.html", "t").read_text(encoding="utf-8")
    assert "height:321px" in text


def test_a_path_is_read_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    png(tmp_path / "study" / "a.png")
    report = tmp_path / "study" / "report.md"
    report.write_text("# Ünïcode\n\n![a](a.png)\n", encoding="utf-8")
    path = write_page(report, [], tmp_path / "elsewhere" / "page.html", "t")
    assert "Ünïcode" in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]  # no temporary left


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("![a](missing.png)", "image='missing.png'"),
        ("![a](https://example.org/a.png)", "image='https://example.org/a.png'"),
        ("no image", "figures="),
    ],
)
def test_what_would_be_lost_is_refused(tmp_path: Path, text: str, message: str) -> None:
    figure = ReportFigure(png(tmp_path / "a.png"), "A.")
    with pytest.raises(ValueError, match=re.escape(message)):
        write_page(text, [figure], tmp_path / "page.html", "t")
    assert not (tmp_path / "page.html").exists()
