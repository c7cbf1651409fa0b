"""Markdown tables, and the generated part of a page."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table, followed by an empty line."""
    rule = ["---"] * len(header)
    return [f"| {' | '.join(row)} |" for row in (header, rule, *rows)] + [""]


def insert(page: str, marks: tuple[str, str], text: str) -> str:
    """Return a page with `text` between its two marks.

    Raises:
        ValueError: If the page does not have both.
    """
    begin, end = marks
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"insert: expected a page with {begin} and {end}, got neither or one.")
    return f"{before}{begin}\n\n{text}\n{end}{after}"


def inserted(page: str, marks: tuple[str, str]) -> str:
    """Return the text between the two marks of a page."""
    begin, end = marks
    return page.partition(begin)[2].partition(end)[0].strip() + "\n"
