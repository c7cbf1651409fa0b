"""Hooks of the documentation site, which change a page before and after Markdown is rendered.

Formulas in LaTeX become MathML, which needs no script and nothing from the network. GitHub shows
the same source as formulas: a fence named math, and $`...`$ within a line.
"""

import re

from latex2mathml.converter import convert

BLOCK = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"\$`([^`\n]+)`\$")
SEARCH = 'data-md-component="search" aria-label="Search"'
TEST = re.compile(r"(?<=<code>)test_\w+(?=</code>)")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Return a page with its formulas as MathML, and with no line break before or after ±."""
    # One line of HTML, which Markdown leaves as it is.
    markdown = BLOCK.sub(lambda found: convert(found[1].strip(), display="block"), markdown)
    # In a span, since Markdown would begin a new paragraph at a line that begins with <math>.
    markdown = INLINE.sub(lambda found: f"<span>{convert(found[1])}</span>", markdown)
    return markdown.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def on_page_content(html: str, **_: object) -> str:
    """Return a page in which the long names of tests may break behind an underscore."""
    return TEST.sub(lambda found: found[0].replace("_", "_<wbr>"), html)


def on_post_page(output: str, **_: object) -> str:
    """Return a page whose search has the name that screen readers read out."""
    return output.replace('data-md-component="search" role="dialog"', f'{SEARCH} role="dialog"')
