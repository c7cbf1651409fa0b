"""Every Python block of the documentation runs, page by page."""

import re
from pathlib import Path

import pytest

# First, because of what is imported there and how.
import hosts  # noqa: F401

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = {
    str(path.relative_to(DOCS)): BLOCK.findall(path.read_text("utf-8"))
    for path in sorted(DOCS.rglob("*.md"))
}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, blocks in PAGES.items() if blocks])
# Of other people's libraries.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = compile("\n".join(PAGES[page]), page, "exec")
    exec(code, {"__name__": "page"})  # noqa: S102 - the code is our own


def test_pages_are_found() -> None:
    assert {"how-to/encoders.md", "how-to/insert.md", "how-to/streaming.md"} <= set(PAGES)
