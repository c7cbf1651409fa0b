"""Hooks of the documentation site, which change a page's Markdown before it is built.

Formulas in LaTeX become MathML, which needs no script and nothing from the network. GitHub shows the same source as
formulas: a fence named math, and $`...`$ within a line.
"""

import re
from typing import Any

from latex2mathml.converter import convert

BLOCK = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"\$`([^`\n]+)`\$")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with its formulas as MathML, and with no line break before or after ±."""
    # One line of HTML, which Markdown leaves as it is.
    markdown = BLOCK.sub(lambda found: convert(found[1].strip(), display="block"), markdown)
    markdown = INLINE.sub(lambda found: convert(found[1]), markdown)
    return markdown.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
