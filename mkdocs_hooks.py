"""Hooks of the documentation site, which change a page before and after Markdown is rendered.

Formulas in LaTeX become MathML, which needs no script and nothing from the network. GitHub shows
the same source as formulas: a fence named math, and $`...`$ within a line.
"""

import ast
import re
from pathlib import Path
from typing import Protocol

from latex2mathml.converter import convert

BLOCK = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"\$`([^`\n]+)`\$")
SEARCH = 'data-md-component="search" aria-label="Search"'
TEST = re.compile(r"(?<=<code>)test_\w+(?=</code>)")

CODE = re.compile(r"<code>([A-Za-z_.]+)</code>(?!</a>)")
PACKAGE = Path(__file__).parent / "src" / "grf_fusion"


class File(Protocol):
    """The part of a file of the site that is read here."""

    src_uri: str


class Page(Protocol):
    """The part of a page of the site that is read here."""

    file: File


def places() -> dict[str, str]:
    """Return the full name of everything that a public module exports, methods too."""
    exported: dict[str, str] = {}
    classes: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef):
                functions = [part for part in node.body if isinstance(part, ast.FunctionDef)]
                classes[node.name] = [f.name for f in functions if not f.name.startswith("_")]
            elif "._" not in module and ast.unparse(node).startswith("__all__ = "):
                names = ast.literal_eval(ast.unparse(node).removeprefix("__all__ = "))
                exported |= {name: f"{module}.{name}" for name in names}
    methods = {
        f"{name}.{method}": f"{full}.{method}"
        for name, full in exported.items()
        for method in classes.get(name, [])
    }
    return exported | methods


NAMES = places()


def on_page_markdown(markdown: str, **_: object) -> str:
    """Return a page with its formulas as MathML, and with no line break before or after ±."""
    # One line of HTML, which Markdown leaves as it is.
    markdown = BLOCK.sub(lambda found: convert(found[1].strip(), display="block"), markdown)
    # In a span, since Markdown would begin a new paragraph at a line that begins with <math>.
    markdown = INLINE.sub(lambda found: f"<span>{convert(found[1])}</span>", markdown)
    return markdown.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def on_page_content(html: str, page: Page, **_: object) -> str:
    """Return a page in which long names of tests may break, and the reference links our names.

    Tables have the focus in turn, so that the keyboard can scroll a wide one.
    """
    html = TEST.sub(lambda found: found[0].replace("_", "_<wbr>"), html)
    html = html.replace("<table>", '<table tabindex="0">')
    return CODE.sub(linked, html) if page.file.src_uri.startswith("reference/") else html


def linked(found: re.Match[str]) -> str:
    """Return a name in code as a link to its place, unless it is not one of ours."""
    target = NAMES.get(found[1])
    return f'<autoref identifier="{target}">{found[0]}</autoref>' if target else found[0]


def on_post_page(output: str, **_: object) -> str:
    """Return a page whose search has the name that screen readers read out."""
    return output.replace('data-md-component="search" role="dialog"', f'{SEARCH} role="dialog"')
