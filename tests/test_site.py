"""The site of the documentation: it builds strictly, no link leads nowhere, search finds things."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
import yaml

import grf_fusion
import grf_fusion.baselines
import grf_fusion.checkpoints
import grf_fusion.diagnostics
import grf_fusion.env
import grf_fusion.parallel
import grf_fusion.viz

pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install '.[docs]'")

import mkdocs_hooks

REPOSITORY = Path(__file__).resolve().parents[1]
LINKS = ("href", "src", "srcset", "poster", "data")
# Elements whose address the browser fetches by itself; a link is followed by hand.
FETCHED = ("link", "script", "img", "iframe", "source", "object")


class Page(NamedTuple):
    """What a page holds.

    Attributes:
        links: Tag and address of everything that points somewhere.
        anchors: What can be pointed at.
    """

    links: list[tuple[str, str]]
    anchors: set[str]


class Reader(HTMLParser):
    """Collects links and anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.page = Page([], set())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in LINKS and value is not None:
                self.page.links.append((tag, value))
            elif value is not None and (name == "id" or (tag == "a" and name == "name")):
                self.page.anchors.add(value)


def read(text: str) -> Page:
    """Return what a page holds."""
    reader = Reader()
    reader.feed(text)
    return reader.page


def broken_links(site: Path) -> list[str]:
    """Return every address inside of a site at which there is nothing."""
    pages = {path: read(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}
    broken: list[str] = []
    for path, page in pages.items():
        # What is shown for any missing address can only point from the root.
        start = site if path.name == "404.html" else path.parent
        for _, link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            place = unquote(parts.path)
            root = site if place.startswith("/") else start
            target = (root / place.lstrip("/")).resolve() if place else path
            if target.is_dir():
                target /= "index.html"
            anchors = pages[target].anchors if target in pages else set()
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in anchors):
                broken.append(f"{path.relative_to(site)}: {link}")
    return broken


def fetched_from_elsewhere(site: Path) -> list[str]:
    """Return every address of the network that a page fetches when it is read."""
    return [
        f"{path.relative_to(site)}: {link}"
        for path in sorted(site.rglob("*.html"))
        for tag, link in read(path.read_text("utf-8")).links
        if tag in FETCHED and urlsplit(link).netloc
    ]


def found_by_search(index: dict[str, Any], query: str) -> list[str]:
    """Return the pages that hold all words of a query, cut into words as the search cuts them.

    First come the pages with the largest boost, among these the ones with a word in a title.
    """
    separator = re.compile(index["config"]["separator"])
    found: dict[str, tuple[float, bool]] = {}
    for entry in index["docs"]:
        text = re.sub(r"<[^>]*>", " ", f"{entry['title']} {entry['text']}")
        words = query.split()
        if not set(words) <= set(separator.split(text.lower())):
            continue
        page = entry["location"].partition("#")[0]
        titled = not set(words).isdisjoint(separator.split(entry["title"].lower()))
        rank = (entry.get("boost", 1), titled)
        found[page] = max(found.get(page, rank), rank)
    return sorted(found, key=found.__getitem__, reverse=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site strictly."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    # The theme's authors announce a successor on the terminal.
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return folder.resolve()


@pytest.mark.slow
def test_no_link_leads_nowhere(site: Path) -> None:
    assert broken_links(site) == []


@pytest.mark.slow
def test_nothing_comes_from_the_network(site: Path) -> None:
    assert fetched_from_elsewhere(site) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "page"),
    [
        ("attention_mask", "how-to/masks.html"),
        ("missing", "how-to/missing.html"),
        ("padding", "how-to/masks.html"),
        ("onnx", "how-to/deploy.html"),
        ("which fusion", "which-fusion.html"),
        ("late fusion", "which-fusion.html"),
        ("dataloader", "faq.html"),
        ("trainer", "faq.html"),
        ("lightning", "faq.html"),
        ("video", "faq.html"),
        ("faq", "faq.html"),
    ],
)
def test_search_finds(site: Path, word: str, page: str) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text("utf-8"))
    assert page in found_by_search(index, word)


@pytest.mark.slow
@pytest.mark.parametrize("word", ["missing", "padding", "padded", "mask"])
def test_search_shows_a_how_to_before_the_reference(site: Path, word: str) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text("utf-8"))
    folders = [page.partition("/")[0] for page in found_by_search(index, word)]
    assert folders.index("how-to") < folders.index("reference")


@pytest.mark.slow
@pytest.mark.parametrize(
    "package",
    [
        grf_fusion,
        grf_fusion.baselines,
        grf_fusion.checkpoints,
        grf_fusion.diagnostics,
        grf_fusion.env,
        grf_fusion.parallel,
        grf_fusion.viz,
    ],
    ids=lambda package: package.__name__,
)
def test_every_public_name_has_its_place(site: Path, package: object) -> None:
    pages = [path.read_text("utf-8") for path in (site / "reference").rglob("*.html")]
    anchors = set().union(*(read(text).anchors for text in pages))
    name = package.__name__
    assert {f"{name}.{public}" for public in package.__all__} <= anchors


def navigation(entries: list[Any]) -> dict[str, str]:
    """Return the title by page of a mkdocs navigation; sections that are pages have none."""
    titles: dict[str, str] = {}
    for entry in entries:
        if isinstance(entry, str):
            continue
        ((title, target),) = entry.items()
        titles |= {target: title} if isinstance(target, str) else navigation(target)
    return titles


def test_navigation_and_headings_agree() -> None:
    text = re.sub(r"^hooks:.*$", "", (REPOSITORY / "mkdocs.yml").read_text("utf-8"), flags=re.M)
    titles = navigation(yaml.safe_load(text)["nav"])
    assert len(titles) > 30
    for page, title in titles.items():
        heading = re.search(r"^# (.*)$", (REPOSITORY / "docs" / page).read_text("utf-8"), re.M)
        # The reference's headings are names in code; the home page's is that of the project.
        if heading is not None and page != "index.md" and not page.startswith("reference/"):
            assert heading[1] == title, page


def test_which_fusion_is_second() -> None:
    nav = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text("utf-8"))["nav"]
    assert list(nav[1]) == ["Which fusion?"]


def test_our_names_are_found() -> None:
    assert mkdocs_hooks.NAMES["MulT"] == "grf_fusion.baselines.MulT"
    assert mkdocs_hooks.NAMES["ShapeError"] == "grf_fusion.ShapeError"
    packages = [
        grf_fusion,
        grf_fusion.baselines,
        grf_fusion.checkpoints,
        grf_fusion.diagnostics,
        grf_fusion.env,
        grf_fusion.parallel,
        grf_fusion.viz,
    ]
    public = [f"{package.__name__}.{name}" for package in packages for name in package.__all__]
    assert set(public) <= set(mkdocs_hooks.NAMES.values())
    assert "FusionState" in mkdocs_hooks.NAMES
    assert not any("._" in name for name in mkdocs_hooks.NAMES.values())


@pytest.mark.slow
def test_our_names_are_links_in_the_reference(site: Path) -> None:
    text = (site / "reference" / "modality-dropout.html").read_text("utf-8")
    target = "gated-recurrent-fusion.html#grf_fusion.GatedRecurrentFusion"
    for place in ("", ".presence"):
        assert re.search(rf'<a [^>]*href="{target}{place}"[^>]*><code>', text)
    for path in (site / "reference").rglob("*.html"):
        assert "<autoref" not in path.read_text("utf-8")


@pytest.mark.slow
def test_the_search_has_a_name(site: Path) -> None:
    """The hook still finds what the theme writes."""
    for path in site.rglob("*.html"):
        # Built without hooks.
        if path.name == "404.html":
            continue
        assert ' aria-label="Search" role="dialog"' in path.read_text("utf-8"), path


@pytest.mark.slow
def test_the_keyboard_can_scroll_a_table(site: Path) -> None:
    text = (site / "how-to" / "missing.html").read_text("utf-8")
    assert text.count('<table tabindex="0">') == text.count("</table>") > 0


@pytest.mark.slow
def test_formulas_are_mathml(site: Path) -> None:
    text = (site / "mathematics.html").read_text("utf-8")
    assert text.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') >= 5
    assert text.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="inline">') >= 10
    assert "```math" not in text
    assert "$<code>" not in text


def test_the_hooks_of_the_site() -> None:
    page = mkdocs_hooks.on_page_markdown("A $`x_k`$, 1.0 ± 0.2.\n\n```math\nx\n```\n")
    inline, block = re.findall(r"<math.*?</math>", page)
    assert "<msub>" in inline
    assert 'display="block"' in block
    assert "1.0\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.2" in page
    assert mkdocs_hooks.on_page_markdown("`$x$` and\n```text\n$`\n```\n") == (
        "`$x$` and\n```text\n$`\n```\n"
    )
    search = '<div class="md-search" data-md-component="search" role="dialog">'
    assert ' aria-label="Search" ' in mkdocs_hooks.on_post_page(search)
    html = "<code>test_a_b</code> <code>a_b</code>"
    page = SimpleNamespace(file=SimpleNamespace(src_uri="guarantees.md"))
    broken = mkdocs_hooks.on_page_content(html, page)
    assert broken == "<code>test_<wbr>a_<wbr>b</code> <code>a_b</code>"
    assert mkdocs_hooks.on_page_content("<table>", page) == '<table tabindex="0">'


@pytest.mark.slow
def test_docstrings_are_rendered(site: Path) -> None:
    """No directive of another language, and no section that was taken for prose."""
    for path in (site / "reference").rglob("*.html"):
        text = path.read_text("utf-8")
        assert "code-block::" not in text
        assert re.search(r"<p>(Args|Raises|Returns|Shape|Examples|Attributes):", text) is None


def test_broken_links_are_seen(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="top"></h1><a href="b/c.html#there"></a><a href="#top"></a>'
        '<a href="b/c.html#gone"></a><a href="#gone"></a><img src="gone.png">'
        '<a href="https://example.org/gone"></a>'
    )
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.html").write_text('<p id="there"></p><a href="../a.html"></a>')
    site = tmp_path.resolve()
    gone = ["a.html: b/c.html#gone", "a.html: #gone", "a.html: gone.png"]
    assert broken_links(site) == gone


def test_what_is_fetched_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="https://example.org/"></a><script src="//example.org/x.js"></script>'
        '<link href="https://example.org/x.css"><script src="x.js"></script>'
    )
    assert fetched_from_elsewhere(tmp_path) == [
        "a.html: //example.org/x.js",
        "a.html: https://example.org/x.css",
    ]


def test_search_is_by_words() -> None:
    index = {
        "config": {"separator": r"[\s\-]+"},
        "docs": [
            {"location": "a.html#b", "title": "A", "text": "<p>one two_three</p>"},
            {"location": "c.html", "title": "Four", "text": ""},
        ],
    }
    assert found_by_search(index, "two_three") == ["a.html"]
    assert found_by_search(index, "four") == ["c.html"]
    assert found_by_search(index, "two") == found_by_search(index, "one four") == []


def test_search_ranks_by_boost_and_title() -> None:
    docs = [
        {"location": "plain.html", "title": "A", "text": "word"},
        {"location": "boosted.html", "title": "A", "text": "word", "boost": 2},
        {"location": "titled.html", "title": "Word", "text": ""},
    ]
    index = {"config": {"separator": " "}, "docs": docs}
    assert found_by_search(index, "word") == ["boosted.html", "titled.html", "plain.html"]
