"""README and docs do what they say, and become a site that lacks nothing and fetches nothing."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from browser import EXCUSE, browser, visit
from documented import PageError, blocks_of, check_page
from documented_commands import ROOT, benchmark_refusal, load

from toolkit.routing import parse

DOCS = ROOT / "docs"
REFERENCE = sorted((DOCS / "reference").glob("*.md"))
REPORTS = sorted(set(DOCS.rglob("report.md")) - {DOCS / "how_to" / "report.md"})
"""Written by commands, of the code and the settings of their day: the site shows them, nothing in them is run."""

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(set(DOCS.rglob("*.md")) - {*REPORTS, *REFERENCE})]


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are run from the repository's root."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    check_page(page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("```python\nx = 1\n```\n\n```python\ny = x\n\ny / 0\n```\n", 8, "ZeroDivisionError"),
        ("# Page\n\n```python\ndef f():\n    raise KeyError('k')\n\n\nf()\n```\n", 5, "KeyError"),
        ("```python\nx = (1\n```\n", 2, "SyntaxError"),
        ("```python\n1 + 1  # -> 3\n```\n", 2, "the page says"),
        ("```python\nprint('a')  # -> b\n```\n", 2, "the page says"),
        ("```python\n# -> 2\n```\n", 2, "behind no statement"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", 6, "the page says"),
        ("```text\n2\n```\n", 1, "right after"),
        ("```python\nprint(1)\n```\n\nwords\n\n```text\n1\n```\n", 7, "right after"),
        ("```py\n1 / 0\n```\n", 1, "not 'py'"),
        ("- so:\n\n  ```python\n  1 / 0\n  ```\n", 3, "beginning of a line"),
        ("words\n\n```yaml\na: [\n```\n", 4, "no YAML"),
        ("```yaml\n# my.yaml, for: python experiments/dense_vs_sparse.py --config my.yaml\ngird: 1\n```\n", 2, "gird"),
        ("```yaml\n# python experiments/dense_vs_sparse.py --config m.yaml\nmodel: {layers: 0}\n```\n", 2, "layers"),
        ("```\nmake demo\nmake nothing_like_it\n```\n", 3, "nothing_like_it"),
        ("```bash\nrm -rf here\n```\n", 2, "are known here"),
        ("```bash\npip install '.[everything]'\n```\n", 2, "extras are"),
        (
            "```bash\n# so:\npython experiments/dense_vs_sparse.py \\\n    --preset demo --grid.sedes 3\n```\n",
            3,
            "sedes",
        ),
        ("```\npython experiments/dense_vs_sparse.py --preset nowhere\n```\n", 2, "nowhere"),
        ("```\ntorchrun --nproc-per-node 3 experiments/dense_vs_sparse.py --devices 2\n```\n", 2, "devices"),
        ("See\n`python experiments/benchmarks/moe.py --monitors 3`.\n", 2, "--monitors"),
        ("`python experiments/benchmarks/flop_count.py --all`\n", 1, "no arguments"),
        ("`python experiments/benchmarks/none.py`\n", 1, "there is no"),
        ("`python -m toolkit.scaling.plan --gpus few`\n", 1, "few"),
        ("`python -m toolkit.training.check nowhere.yaml`\n", 1, "nowhere.yaml"),
        ("`python -m toolkit.checks`\n", 1, "reads no settings"),
        ("`python -m toolkit.nothing`\n", 1, "there is no"),
        ("`python -m pytest tests/none/test_none.py -s`\n", 1, "there is no"),
    ],
)
def test_what_is_wrong_is_reported_with_page_and_line(text: str, line: int, message: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(PageError, match=message) as refused:
        check_page(page, tmp_path)
    assert str(refused.value).startswith(f"{page}:{line}: ")


def test_what_is_right_is_accepted(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = {1: 2}\nx  # -> {1: ...}\nprint(\n    'a  b'\n)  # -> a b\n```\n```text\na b\n```\n"
        "```yaml\na: 1\n```\n```\nmake demo RUNS=runs/x\nwhat it printed\n```\n"
    )
    check_page(page, tmp_path)
    assert [block.language for block in blocks_of(page)] == ["python", "text", "yaml", ""]


ROUTER = """```python
from toolkit.routing import TopKRouter, register_router


class PageRouter(TopKRouter):
    pass


register_router(PageRouter)
```
"""
STUDY = """```yaml
# r.yaml, for: python experiments/{script}.py --config r.yaml --out runs/r
grid: {{budgets: [{{flops: 6e10, dims: [16]}}], families: [dense, mine]}}
model: {{baseline: dense, arms: [{{name: mine, router: "PageRouter()", num_experts: 8, top_k: 2}}]}}
```
"""
SCRIPT = """```python
# experiments/page_router.py, below the class
from routing_ablation import main
from toolkit.scaling.cli import run_experiment

register_router(PageRouter)
if __name__ == "__main__":
    run_experiment(main)
```

`python experiments/page_router.py --dry-run`
"""


def test_a_name_of_the_session_is_none_of_the_scripts(tmp_path: Path) -> None:
    """And one page's is none of the next: the same page can be read again."""
    page = tmp_path / "page.md"
    page.write_text(ROUTER + STUDY.format(script="routing_ablation"))
    for _ in range(2):
        with pytest.raises(PageError, match="PageRouter"):
            check_page(page, tmp_path)
        assert "PageRouter" not in parse.REGISTERED


def test_a_script_that_the_page_has_written_knows_its_names(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(ROUTER + SCRIPT + STUDY.format(script="page_router"))
    check_page(page, tmp_path)
    page.write_text(ROUTER + SCRIPT.replace("register_router(PageRouter)", "") + STUDY.format(script="page_router"))
    with pytest.raises(PageError, match="PageRouter"):
        check_page(page, tmp_path)


def test_a_benchmark_without_arguments_is_loaded(tmp_path: Path) -> None:
    script = tmp_path / "bench.py"
    script.write_text("import gone_for_good\n\n\ndef main():\n    pass\n")
    with pytest.raises(ModuleNotFoundError, match="gone_for_good"):
        benchmark_refusal(script, [])
    script.write_text("def main():\n    raise AssertionError('it ran')\n")
    assert benchmark_refusal(script, []) is None
    script.write_text(
        "import argparse\n\n\ndef main():\n    parser = argparse.ArgumentParser()\n"
        "    parser.add_argument('what')\n    parser.parse_args()\n"
    )
    assert "what" in (benchmark_refusal(script, []) or "")
    assert benchmark_refusal(script, ["x"]) is None


def test_ci_does_without_a_browser_only_where_it_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", "true")
    monkeypatch.delenv(EXCUSE, raising=False)
    with pytest.raises(pytest.fail.Exception, match=EXCUSE):
        browser()
    monkeypatch.setenv(EXCUSE, "no root")
    with pytest.raises(pytest.skip.Exception, match="no root"):
        browser()
    monkeypatch.delenv("CI")
    monkeypatch.delenv(EXCUSE)
    with pytest.raises(pytest.skip.Exception):
        browser()
    (tmp_path / "google-chrome").touch(0o755)
    assert browser() == str(tmp_path / "google-chrome")
    assert EXCUSE in (ROOT / ".ci" / "run").read_text()


# The site


def needed(name: str) -> None:
    """Import a part of the site's builder, which Python 3.10 has not (setup.cfg)."""
    if sys.version_info < (3, 11):
        pytest.importorskip(name)
    importlib.import_module(name)


class Fetched(HTMLParser):
    """What a browser would load by itself from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        loads = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}
        address = dict(attrs).get(loads.get(tag, "")) or ""
        if re.match(r"(https?:)?//", address):
            self.addresses.append(address)


def fetched(page: str) -> list[str]:
    """Addresses elsewhere that the HTML makes a browser load."""
    parser = Fetched()
    parser.feed(page)
    return parser.addresses


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(config), "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    needed("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT / "mkdocs.yml", folder)
    assert built.returncode == 0, built.stderr
    yield folder


def test_every_page_is_on_the_site(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS)).with_suffix(".html").is_file(), page


def test_nothing_is_fetched(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert fetched(page.read_text()) == [], page
    for sheet in site.rglob("*.css"):
        assert re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", sheet.read_text()) == [], sheet


def test_search_finds_a_name_on_pages_opened_from_a_folder(site: Path, tmp_path: Path) -> None:
    shown, _ = visit(f"{(site / 'index.html').as_uri()}?q=SinkhornRouter", tmp_path / "profile")
    found = re.findall(r'<a href="([^"]+)" class="md-search-result__link"', shown)
    assert any("reference/routing.html" in address for address in found)


@pytest.mark.parametrize("page", REFERENCE, ids=lambda page: page.stem)
def test_the_reference_has_every_public_name_with_its_text(site: Path, page: Path) -> None:
    module = re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)[0]
    html = (site / "reference" / page.name).with_suffix(".html").read_text()
    # A name that a file has too (``toolkit.attention.merge``) is asked for on its page by where it is defined.
    room = importlib.import_module(module)
    homes = {name: (module, getattr(getattr(room, name), "__module__", module)) for name in room.__all__}
    assert [name for name in homes if not any(f'id="{home}.{name}"' in html for home in homes[name])] == []
    assert not re.findall(r":(?:class|func|meth|mod):", html)


@pytest.mark.parametrize("words", ["[gone](gone.md)", "[gone](index.md#gone)", "::: toolkit.work.Gone"])
def test_a_warning_is_an_error(words: str, tmp_path: Path) -> None:
    needed("mkdocs")
    ours = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Page\n\n{words}\n")
    settings = {name: ours[name] for name in ("site_name", "strict", "validation", "plugins")}
    settings["plugins"] = ["search", {"mkdocstrings": {"handlers": {"python": {"paths": [str(ROOT)]}}}}]
    config = tmp_path / "mkdocs.yml"
    config.write_text(yaml.safe_dump(settings))
    built = build(config, tmp_path / "site")
    assert built.returncode != 0
    assert "gone" in built.stderr.lower()


def test_docstrings_are_rewritten_for_the_reference() -> None:
    needed("griffe")
    house = load(DOCS / "extensions" / "house_docstrings.py")
    text = "See.\n\nArgs:\n    q, k: words, more\n        words\n    v: other\n\nShapes: a, b: c\n\n>>> 1\n1\n\nEnd."
    apart = "    q: words, more\n        words\n    k: words, more\n        words\n    v: other\n"
    assert house.split_names(text) == text.replace("    q, k: words, more\n        words\n    v: other\n", apart)
    assert house.fence_examples(text).endswith("c\n\n```pycon\n>>> 1\n1\n```\n\nEnd.")


def test_what_a_browser_would_fetch_is_seen() -> None:
    page = (
        '<a href="https://a.b/c"></a><link href="//fonts.c/d"><script src="https://e.f/g.js"></script><img src="h.png">'
    )
    assert fetched(page) == ["//fonts.c/d", "https://e.f/g.js"]
