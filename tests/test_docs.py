"""Every Python block of the documentation runs, page by page, and prints what the page says."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from hosts import load

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Behind a call of print, and as a block of its own.
SAID = re.compile(
    r"^ *print\([^\n]*\)  # (?P<line>[^\n]+)$|^``` \{ \.text \.printed \}\n(?P<block>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PAGES = {
    str(path.relative_to(DOCS)): path.read_text("utf-8") for path in sorted(DOCS.rglob("*.md"))
}


def said(page: str) -> list[str]:
    """Return the lines that a page says its code prints, in order."""
    found = (match["line"] or match["block"] for match in SAID.finditer(page))
    return [line for text in found for line in text.splitlines()]


def unsaid(claims: Iterable[str], printed: str) -> list[str]:
    """Return the claims that are not among the printed lines, in order; more may be printed."""
    lines = iter(printed.splitlines())
    return [claim for claim in claims if claim not in lines]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if BLOCK.search(text)])
# Of other people's libraries.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if "transformers" in PAGES[page]:
        load("transformers")
    code = compile("\n".join(BLOCK.findall(PAGES[page])), page, "exec")
    exec(code, {"__name__": "page"})  # noqa: S102 - the code is our own
    assert unsaid(said(PAGES[page]), capsys.readouterr().out) == []


@pytest.mark.slow
def test_the_classifier_scores_what_its_table_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = PAGES["tutorials/classifier.md"]
    namespace: dict[str, Any] = {"__name__": "page"}
    exec("\n".join(BLOCK.findall(page.partition("## 5.")[0])), namespace)  # noqa: S102 - the code is our own
    rows = re.findall(r"^\| ([a-z, ]+) \| (0\.\d\d) \|$", page, re.MULTILINE)
    assert len(rows) == 7
    for given, said in rows:
        names = ("text", "image", "audio") if given == "all three" else given.split(", ")
        # Another processor rounds otherwise, and a training carries that on.
        assert abs(namespace["accuracy"](*names) - float(said)) < 0.04, given


FENCE = re.compile(r"^ *```(?P<kind>[^\n]*)\n(?P<code>.*?)^ *```$", re.MULTILINE | re.DOTALL)
# A page shows so many beside both side bars; printed messages are wrapped.
COLUMNS = 85


def wide_lines(page: str) -> list[str]:
    """Return the lines of code that a page would have to scroll."""
    return [
        line
        for fence in FENCE.finditer(page)
        if ".printed" not in fence["kind"] and fence["kind"] != "math"
        for line in fence["code"].splitlines()
        if len(line) > COLUMNS
    ]


@pytest.mark.parametrize("page", PAGES)
def test_code_fits_on_the_page(page: str) -> None:
    assert wide_lines(PAGES[page]) == []


def test_wide_lines_are_seen() -> None:
    wide = "x" * 86
    page = f"{wide}\n```python\n{wide}\n{wide[1:]}\n```\n\n    ```text\n{wide}\n    ```\n"
    assert wide_lines(page) == [wide, wide]
    assert wide_lines(f"``` {{ .text .printed }}\n{wide}\n```\n```math\n{wide}\n```\n") == []


def test_every_guarantee_names_its_tests() -> None:
    """Every row of the table, and a test of every name."""
    table = re.search(r"^\| Guarantee .*?(?=^\n)", PAGES["guarantees.md"], re.M | re.S)
    rows = table[0].splitlines()[2:]
    assert len(rows) > 10
    defined = {
        name
        for path in Path(__file__).parent.glob("test_*.py")
        for name in re.findall(r"^ *def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
    }
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert set(named) <= defined, row


def test_pages_are_found() -> None:
    assert {"how-to/encoders.md", "how-to/insert.md", "how-to/streaming.md"} <= set(PAGES)


def test_claims_are_found() -> None:
    page = (
        "```python\nprint(a)  # (2, 3)\nif b:\n    print(b)  # True\nprint(c)\n```\n\n"
        "``` { .text .printed }\none\ntwo\n```\n\nProse.\n\n```text\nnot printed\n```\n"
    )
    assert said(page) == ["(2, 3)", "True", "one", "two"]


def test_false_claims_are_seen() -> None:
    printed = "one\ntwo\nthree\n"
    assert unsaid(["one", "three"], printed) == []
    assert unsaid(["four"], printed) == ["four"]
    assert unsaid(["two", "one"], printed) == ["one"]
