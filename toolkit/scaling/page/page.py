"""A report's Markdown as one HTML file that opens from the disk and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from plotly.io import to_json
from plotly.offline import get_plotlyjs

from toolkit.checks import require
from toolkit.files import write_atomically
from toolkit.scaling.report_figure import ReportFigure

_EXTENSIONS = ("tables", "fenced_code", "md_in_html", "sane_lists", "toc")


def write_page(markdown: str | Path, figures: Sequence[ReportFigure], path: str | Path, title: str) -> Path:
    """Write the report as HTML and return its path; the file appears whole or not at all.

    The page is the very Markdown, with a table of contents, tables that scroll and sort, and in place of each image
    the interactive twin of its figure, or the image itself where the figure has none or scripts are off. All of it is
    inside the file, plotly included; a content security policy forbids it to load anything, and to run any script but
    plotly and the page's own, whose hashes it names: HTML in the report's text cannot run one.

    Args:
        markdown: the report's path, or its text, whose images are then relative to the page's folder.
        figures: those of the report, told by the path of their PNG.
        path: of the page; its folder is made if absent.
        title: of the browser's window.

    Raises:
        ValueError: an image of the text is not a file on this disk, or a figure has no place in the text.
    """
    path = Path(path)
    text = markdown.read_text(encoding="utf-8") if isinstance(markdown, Path) else markdown
    base = markdown.parent if isinstance(markdown, Path) else path.parent
    pictures = _Pictures(figures, base)
    body, contents = _convert(text, pictures)
    lost = [str(figure.path) for figure in figures if figure.path.resolve() not in pictures.placed]
    require(not lost, "figures", lost, "figures whose image stands in the text")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _filled(title, contents, body, get_plotlyjs() if pictures.interactive else ""))
    return path


def _filled(title: str, contents: str, body: str, plotly: str) -> str:
    """The page around its body; without ``plotly`` where there is nothing to draw."""
    script = _file("page.js")
    return Template(_file("page.html")).substitute(
        title=html.escape(title),
        contents=contents,
        body=body,
        plotly=f"<script>{plotly}</script>" if plotly else "",
        scripts=" ".join(_hash(text) for text in (plotly, script) if text),
        style=_file("page.css"),
        script=script,
    )


def _hash(script: str) -> str:
    """The source by which a content security policy allows an inline script of exactly this text."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _convert(text: str, pictures: _Pictures) -> tuple[str, str]:
    """The body and the table of contents, as HTML."""
    converter = Markdown(
        extensions=[*_EXTENSIONS, pictures], extension_configs={"toc": {"toc_depth": "2-3"}}, output_format="html"
    )
    folded = text.replace("<details>", '<details markdown="1">')  # Markdown inside HTML is otherwise left as it is
    body = converter.convert(folded)
    body = re.sub(r"<summary>(.*?)</summary>", _summary, body)
    table = '<div class="table" tabindex="0"><table>'
    body = body.replace("<table>", table).replace("</table>", "</table></div>")
    body = re.sub(r"<t([dh])\b.*?</t\1>", lambda cell: cell[0].replace(r"\|", "|"), body)  # escaped in code, for GitHub
    return body, str(converter.toc)


def _summary(match: re.Match[str]) -> str:
    """The code in a summary, which Markdown inside HTML leaves as it is."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", match[0])


class _Pictures(Treeprocessor, Extension):
    """Puts each figure where its image stands, and other images into the text.

    Attributes:
        placed: paths of the images met.
        interactive: how many interactive figures were placed.
    """

    def __init__(self, figures: Sequence[ReportFigure], base: Path) -> None:
        Extension.__init__(self)
        Treeprocessor.__init__(self)
        self.figures = {figure.path.resolve(): figure for figure in figures}
        self.base, self.placed, self.interactive = base, set[Path](), 0

    def extendMarkdown(self, md: Markdown) -> None:
        """Run once the images are elements of the tree."""
        self.md = md
        md.treeprocessors.register(self, "pictures", 5)

    def run(self, root: Element) -> None:
        """Replace every image."""
        for parent in list(root.iter()):
            for at, element in enumerate(list(parent)):
                if element.tag == "img":
                    assert self.md is not None
                    holder = Element("span")
                    holder.text = self.md.htmlStash.store(self._picture(element.get("src", ""), element.get("alt", "")))
                    holder.tail = element.tail
                    parent[at] = holder

    def _picture(self, source: str, alt: str) -> str:
        path = (self.base / source).resolve()
        require(path.is_file(), "image", source, f"a file on this disk, relative to {self.base}")
        self.placed.add(path)
        still = f'<img src="{_data_uri(path)}" alt="{html.escape(alt)}">'
        figure = self.figures.get(path)
        if figure is None or figure.interactive is None:
            return still
        self.interactive += 1
        return _interactive(figure.interactive, still, _first_sentence(figure.caption) or alt)


def _first_sentence(caption: str) -> str:
    """What a reader who cannot see the figure is told of it; without Markdown's marks."""
    return re.split(r"(?<=[.!?])\s", caption.replace("`", ""), maxsplit=1)[0]


def _interactive(figure: Any, still: str, label: str) -> str:
    """The place of an interactive figure, its data, and the still for where scripts are off."""
    data = to_json(figure, validate=False, pretty=False)  # which writes "<" as an escape, so that no tag ends in it
    layout = figure.get("layout", {}) if isinstance(figure, dict) else figure.layout.to_plotly_json()
    height = layout.get("height", 430)
    look = "plot wide" if _side_by_side(layout) else "plot"
    return (
        f'<span class="scroll"><span class="{look}" role="group" aria-label="{html.escape(label)}" '
        f'style="height:{height:g}px"><script type="application/json">{data}</script></span></span>'
        f"<noscript>{still}</noscript>"
    )


def _side_by_side(layout: Mapping[str, Any]) -> bool:
    """Whether panels stand beside each other, for which a phone is too narrow."""
    axes = (axis for name, axis in layout.items() if re.fullmatch(r"xaxis\d*", name))
    return any((axis.get("domain") or (0, 1))[0] > 0 for axis in axes)


def _data_uri(path: Path) -> str:
    kinds = {".png": "image/png", ".svg": "image/svg+xml", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
    kind = path.suffix.lower()
    require(kind in kinds, "image", str(path), "one of " + ", ".join(kinds))
    return f"data:{kinds[kind]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _file(name: str) -> str:
    return (resources.files("toolkit.scaling.page") / name).read_text(encoding="utf-8")
