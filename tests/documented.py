"""What a page of Markdown shows, run or refused: Python, YAML for a study, commands; errors name page and line.

- A ``python`` block runs after those before it on its page, in one namespace. ``# -> text`` behind a statement is what
  it prints, or the value that it gives, as doctest compares them (``...`` is anything, white space does not matter).
  A ``text`` block right after is what the block prints.
- A ``python`` block whose first comment names a script of ``experiments/`` is the end of that script, after the page's
  imports and classes so far. It is not run; YAML and commands may name it.
- A ``yaml`` block is YAML; one whose first comment names a script of ``experiments/`` is a file of its settings, and
  the script's own parser takes it.
- The lines of a ``bash`` block, those of an untagged one that begin like a command, and ``python ...`` or ``make ...``
  in running text are commands: the scripts' own parsers take their arguments, and nothing is run.
"""

from __future__ import annotations

import ast
import doctest
import io
import re
import shlex
import tokenize
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from documented_commands import CHECKS, refusal

from toolkit.attention import parse as attention
from toolkit.routing import parse as routing

LANGUAGES = "", "python", "text", "yaml", "bash"
FENCE = re.compile(r"^(?P<fence>```+)(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=fence) *$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:python (?:experiments/|-m )|make )[^`\n]+)`")
SCRIPT = re.compile(r"python (experiments/\w+\.py)((?: \S+)*)")
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class PageError(AssertionError):
    """Something on a page does not do what the page says; opens with page:line."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page, line: where its text begins, lines counted from 1.
        language: its tag, "" for none.
        text: what it holds.
        apart: whether something stands between the block before and this one.
    """

    page: Path
    line: int
    language: str
    text: str
    apart: bool = True

    def error(self, line: int, message: str) -> PageError:
        """For a line of the text, from 1."""
        return PageError(f"{self.page}:{self.line + line - 1}: {message}")


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block of the page, in order."""
    text, blocks, end = page.read_text(), [], 0
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("text")) + 1
        blocks.append(Block(page, line, found["language"], found["text"], bool(text[end : found.start()].strip())))
        end = found.end()
    return blocks


def refuse_unchecked(page: Path, blocks: Sequence[Block]) -> None:
    """Refuse what would be shown and not looked at: blocks within lists, of other languages, or of nobody's output."""
    before = None
    for block in blocks:
        if block.language not in LANGUAGES:
            raise block.error(0, f"a block is one of {', '.join(map(repr, LANGUAGES))}, not {block.language!r}")
        if block.language == "text" and (block.apart or before is None or before.language != "python"):
            raise block.error(0, "a text block stands right after the Python that prints it")
        before = block
    hidden = re.search(r"^(?: *~~~| +```)", outside(page), re.MULTILINE)
    if hidden:
        line = outside(page).count("\n", 0, hidden.start()) + 1
        raise PageError(f"{page}:{line}: a block opens with ``` at the beginning of a line")


def outside(page: Path) -> str:
    """The page with its blocks blanked, line for line."""
    return FENCE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), page.read_text())


def check_page(page: Path, folder: Path) -> None:
    """Check all blocks of the page; ``folder`` is for files that parsers want to read.

    Raises:
        PageError: naming the page, the line and what is wrong there.
    """
    blocks = blocks_of(page)
    refuse_unchecked(page, blocks)
    with names_as_before():
        check_python(blocks)
    scripts = written_scripts(blocks, folder)
    for block in blocks:
        if block.language == "yaml":
            with names_as_before():  # the session above is not the process that reads these settings
                check_yaml(block, folder, scripts)
    with names_as_before():
        check_commands(page, blocks, scripts)


@contextmanager
def names_as_before() -> Iterator[None]:
    """What is registered within, routers and patterns, is forgotten after."""
    kept = [(known, dict(known)) for known in (routing.REGISTERED, attention.NAMES)]
    try:
        yield
    finally:
        for known, before in kept:
            known.clear()
            known.update(before)


# Python: run, and compared with what the page says comes of it.


def check_python(blocks: Sequence[Block]) -> None:
    """Run the Python blocks of one page."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks:
        if block.language == "python" and not script_of(block):
            printed = run_block(block, namespace)
        elif block.language == "text":
            compare(block, 1, block.text, printed)


def script_of(block: Block) -> str:
    """The script that the block is the end of, "" for none."""
    named = re.match(r"# (experiments/\w+\.py)\b", block.text)
    return named[1] if named and block.language == "python" else ""


def written_scripts(blocks: Sequence[Block], folder: Path) -> dict[str, Path]:
    """Write the scripts that the page has its reader write; by name, where they lie."""
    written, so_far = {}, list[str]()
    for block in (block for block in blocks if block.language == "python"):
        name = script_of(block)
        if name:
            written[name] = folder / Path(name).name
            written[name].write_text("\n\n".join([*so_far, block.text]))
        else:
            kept = (ast.Import, ast.ImportFrom, ast.ClassDef)
            so_far += [ast.unparse(each) for each in ast.parse(block.text).body if isinstance(each, kept)]
    return written


def run_block(block: Block, namespace: dict[str, Any]) -> str:
    """Run a block statement by statement; gives what it printed."""
    try:
        statements, expected = ast.parse(block.text).body, expectations(block.text)
    except SyntaxError as error:
        raise block.error(error.lineno or 1, f"SyntaxError: {error.msg}") from None
    every = []
    for statement in statements:
        printed, value = run_statement(block, statement, namespace)
        every.append(printed)
        inside = [line for line in expected if statement.lineno <= line <= (statement.end_lineno or line)]
        for line in inside:
            compare(block, line, expected.pop(line), printed + value)
    for line in expected:
        raise block.error(line, "# -> stands behind no statement")
    return "".join(every)


def run_statement(block: Block, statement: ast.stmt, namespace: dict[str, Any]) -> tuple[str, str]:
    """What the statement prints, and the value that it gives as text; "" for a statement that gives none."""
    ast.increment_lineno(statement, block.line - 1)
    value, output = None, io.StringIO()
    try:
        with redirect_stdout(output):
            if isinstance(statement, ast.Expr):
                value = eval(compile(ast.Expression(statement.value), str(block.page), "eval"), namespace)
            else:
                exec(compile(ast.Module([statement], []), str(block.page), "exec"), namespace)
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(block.page)]
        line = frames[-1].lineno if frames else statement.lineno
        raise PageError(f"{block.page}:{line}: {type(error).__name__}: {error}") from error
    finally:
        ast.increment_lineno(statement, 1 - block.line)
    return output.getvalue(), "" if value is None else repr(value)


def expectations(text: str) -> dict[int, str]:
    """What stands behind ``# ->``, by line from 1."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    return {token.start[0]: token.string[4:].strip() for token in comments if token.string.startswith("# ->")}


def compare(block: Block, line: int, expected: str, given: str) -> None:
    """Refuse what differs from what the page says."""
    if not doctest.OutputChecker().check_output(expected + "\n", given.rstrip("\n") + "\n", SAME):
        raise block.error(line, f"the page says\n{expected}\nbut it is\n{given}")


# YAML: parsed, by the script that it is for.


def check_yaml(block: Block, folder: Path, scripts: Mapping[str, Path]) -> None:
    """Parse the block, and give it to the parser of the script that its first comment names, if it names one."""
    try:
        yaml.safe_load(block.text)
    except yaml.YAMLError as error:
        raise block.error(1, f"no YAML: {error}") from None
    head = block.text.partition("\n")[0]
    named = SCRIPT.search(head) if head.startswith("#") else None
    if named:
        file = folder / "settings.yaml"
        file.write_text(block.text)
        words = [str(file) if word.endswith(".yaml") else word for word in shlex.split(named[2])]
        refused = refusal([named[1], *words], scripts)
        if refused:
            raise block.error(1, f"{named[1]} refuses it: {refused}")


# Commands: given to the parsers of what they call.


def check_commands(page: Path, blocks: Sequence[Block], scripts: Mapping[str, Path]) -> None:
    """Refuse a command that would not be accepted; its output, if any, is not looked at."""
    for line, command in commands_of(page, blocks):
        words = shlex.split(command, comments=True)
        check = partial(refusal, scripts=scripts) if words[0] == "python" else CHECKS.get(words[0])
        refused = f"only {', '.join(CHECKS)} are known here" if check is None else check(words[1:])
        if refused:
            raise PageError(f"{page}:{line}: {command}: {refused}")


def commands_of(page: Path, blocks: Sequence[Block]) -> Iterator[tuple[int, str]]:
    """The page's commands with their lines."""
    for block in blocks:
        if block.language in ("", "bash"):
            for line, command in whole_lines(block):
                if block.language or command.split()[0] in CHECKS:
                    yield line, command
    text = outside(page)
    for found in INLINE.finditer(text):
        yield text.count("\n", 0, found.start()) + 1, found[1]


def whole_lines(block: Block) -> Iterator[tuple[int, str]]:
    """Lines that are neither empty nor a comment, those that a backslash continues as one."""
    line, parts = block.line, []
    for number, text in enumerate(block.text.splitlines(), start=block.line):
        line = line if parts else number
        parts.append(text.strip().removesuffix("\\"))
        if not text.endswith("\\"):
            whole, parts = "".join(parts), []
            if whole and not whole.startswith("#"):
                yield line, whole
