"""Docs, docstrings and comments are plain technical English: no listed phrase, no long sentence."""

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import grf_fusion
import grf_fusion.baselines
import grf_fusion.checkpoints
import grf_fusion.diagnostics
import grf_fusion.env
import grf_fusion.parallel
import grf_fusion.viz

REPOSITORY = Path(__file__).resolve().parents[1]
MODULES = [
    grf_fusion,
    grf_fusion.baselines,
    grf_fusion.checkpoints,
    grf_fusion.diagnostics,
    grf_fusion.env,
    grf_fusion.parallel,
    grf_fusion.viz,
]
# What not to write, and what to write instead.
PHRASES = {
    r"bit for bit": "exactly, or to the bit",
    r"to the letter": "exactly",
    r"(the same|have a|has a|a) say": "weight, or share",
    r"everything (is )?there": "all modalities present",
    r"(features|they|it) as (they|it) comes?": "raw features",
    r"(some|any)?bod(y|ies) listens?|listens? to": "hooks are registered",
    r"nobody|everybody": "no sample, no modality, no step",
    r"at hand": "available",
    r"learnt": "learned",
    r"mend(s|ed|ing)?": "fix",
    r"den(y|ies|ied) (in|a|the|it|modalit)\w*": "switch off",
    r"(?<!never )let(s|ting)? (in|into)": "fuse, or pass",
    r"takes? up": "is fused",
    r"who (has|have|lacks?|leaves|expects|reads|takes|gives|learns|contributes)": "name the thing",
    r"what (is|was|are) (padded|masked|real|absent|missing|not real|read|pooled)": "name the thing",
    r"stands? (in|here|there|above|below|behind|beside|at)": "is",
    r"for each \w+ by itself": "independently for each",
    r"(makes?|lets?) the (host|device) wait|waits? for the (host|device)": "host-device sync",
    r"(hold|holds|held) [^.]{1,40} against": "compare with",
    r"is (here )?(its|their) case": "does best with",
    r"absen(t|ces?)": "missing, as in the glossary",
    r"reads? off": "infer",
    r"(GRF|paper's) authors|(the|its) authors' (code|model|weights)": "the author; GRF has one",
    r"(gates?|shares?|masks?|traces?|weights?|numbers?) (says?|tells?)": "shows",
    r"without a trace|leaves? no trace": "exactly",
    r"to the power of nothing|by other means": "say how",
    r"nothing but (the|what|a)": "only",
    r"does (well )?without(?=[.,;])": "copes without it",
    r"(it is|is) no (fusion|tensor|module|integer|function)": "is not a",
}
PATTERN = re.compile(
    "|".join(rf"(?P<p{i}>\b({p})\b)" for i, p in enumerate(PHRASES)), re.IGNORECASE
)
LONGEST = 45


def phrases_to_change(text: str) -> list[str]:
    """Return what is on the list, with its surroundings and what to write instead."""
    text = " ".join(text.split())
    return [
        f"...{text[max(0, found.start() - 40) : found.end() + 40]}...: "
        f"{list(PHRASES.values())[int((found.lastgroup or 'p0')[1:])]}"
        for found in PATTERN.finditer(text)
    ]


def prose(page: str) -> str:
    """Return a page of Markdown without front matter, code, formulas, tables and addresses."""
    page = re.sub(r"\A---\n.*?^---$", "", page, flags=re.MULTILINE | re.DOTALL)
    page = re.sub(r"^ *```.*?^ *```$", "\n", page, flags=re.MULTILINE | re.DOTALL)
    page = re.sub(r"^[ >]*\|.*$", "\n", page, flags=re.MULTILINE)
    page = re.sub(
        r"<[^>]*>|^:::.*$|^ +options:\n|^ +heading_level: .*$", "", page, flags=re.MULTILINE
    )
    page = re.sub(r"!\[[^\]]*\]\([^)]*\)(\{[^}]*\})?", "", page)
    page = re.sub(r"\]\([^)]*\)", "]", page)
    return re.sub(r"\$?`[^`]*`\$?", "CODE", page)


def sentences(text: str) -> list[str]:
    """Split prose into sentences; an item of a list and a heading end one too."""
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.|#+) )", text)
    found = [re.split(r"(?<=[.:;?!])\s+(?=[A-Z*\[(`])", " ".join(b.split())) for b in blocks]
    return [sentence for block in found for sentence in block if sentence]


def long_sentences(text: str) -> list[str]:
    """Return the sentences that have too many words."""
    return [s for s in sentences(text) if len(s.split()) > LONGEST]


def without_code(page: str) -> str:
    """Return a page of Markdown without its blocks and spans of code."""
    page = re.sub(r"^ *```.*?^ *```$", "\n", page, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`+[^`]*`+", "CODE", page)


def docstrings(modules: list[ModuleType]) -> dict[str, str]:
    """Return the docstrings of modules, of what they export, and of its public methods."""
    found: dict[str, str] = {}

    def add(name: str, thing: Any) -> None:
        if text := inspect.getdoc(thing):
            found[name] = text

    for module in modules:
        add(module.__name__, module)
        for name in module.__all__:
            thing = getattr(module, name)
            add(f"{module.__name__}.{name}", thing)
            members = vars(thing).items() if inspect.isclass(thing) else ()
            for member, value in members:
                if not member.startswith("_") and inspect.isroutine(value):
                    add(f"{module.__name__}.{name}.{member}", value)
    return found


def private_words(source: str) -> str:
    """Return the docstrings and comments of a file, without code and the names of attributes."""
    found = [
        (ast.get_docstring(node) or "").partition("Examples:")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    ]
    comments = [
        (token.start[0], token.string.removeprefix("#").strip())
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    last = 0
    for line, text in comments:
        # Lines of one comment are one text.
        found.append(f"{found.pop()} {text}" if line == last + 1 else text)
        last = line
    return "\n\n".join(without_code(re.sub(r"^ +\w+: ", "", x, flags=re.M)) for x in found)


PAGES = {
    str(path.relative_to(REPOSITORY)): path.read_text("utf-8")
    for path in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
    # Tables, written by `benchmarks.quality`.
    if path.parent.name != "evidence"
}
DOCSTRINGS = docstrings(MODULES)
SOURCES = {
    str(path.relative_to(REPOSITORY)): path.read_text("utf-8")
    for path in sorted((REPOSITORY / "src").rglob("*.py"))
}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_page_is_plain_english(page: str) -> None:
    assert phrases_to_change(without_code(PAGES[page])) == []


@pytest.mark.parametrize("page", sorted(PAGES))
def test_sentences_of_a_page_are_short(page: str) -> None:
    assert long_sentences(prose(PAGES[page])) == []


def in_docstring(name: str) -> list[str]:
    """Return what to change in a docstring, its examples left out."""
    return phrases_to_change(without_code(DOCSTRINGS[name].partition("Examples:")[0]))


@pytest.mark.parametrize("name", sorted(DOCSTRINGS))
def test_docstring_is_plain_english(name: str) -> None:
    assert in_docstring(name) == []


@pytest.mark.parametrize("file", sorted(SOURCES))
def test_words_in_a_file_are_plain_english(file: str) -> None:
    assert phrases_to_change(private_words(SOURCES[file])) == []


def test_public_docstrings_are_found() -> None:
    assert {
        "grf_fusion.baselines",
        "grf_fusion.GatedRecurrentFusion.step",
        "grf_fusion.FusionState",
        "grf_fusion.viz.plot_gates",
    } <= set(DOCSTRINGS)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The state is the same\nbit for bit.", 1),
        ("What is padded has no influence. Who has audio?", 2),
        ("A share tells when; the masks say so.", 2),
        ("We hold it against MulT.", 1),
        ("A token, a mask and the learned gate. It lets you go on. Never let in.", 0),
        ("The standard say-so. Amend it.", 0),
    ],
)
def test_phrases_are_seen(text: str, found: int) -> None:
    assert len(phrases_to_change(text)) == found


def test_code_is_no_prose() -> None:
    page = "---\na: b\n---\n# A\n\n```python\nbit for bit\n```\n\n| a |\n\nB `nobody` [c](d.md).\n"
    assert sentences(prose(page)) == ["# A", "B CODE [c]."]
    assert phrases_to_change(without_code(page)) == []


def test_words_of_a_file_are_found() -> None:
    source = (
        '"""A `nobody`.\n\nAttributes:\n    absent: Not here.\n"""\n\nx = 1  # bit for\n# bit\n\n\n'
    )
    source += 'def f():\n    """Mend it."""\n'
    assert len(phrases_to_change(private_words(source))) == 2


def test_long_sentences_are_seen() -> None:
    long = "One " + "word " * 50 + "end."
    assert long_sentences(f"Short.\n\n- An item\n- {long}") == [" ".join(f"- {long}".split())]


def test_members_are_found() -> None:
    check: Callable[[str], bool] = docstrings([grf_fusion]).__contains__
    assert check("grf_fusion.FusionAdapter.forward")
    assert not check("grf_fusion.FusionAdapter._reset")
