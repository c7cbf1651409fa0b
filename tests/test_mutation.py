"""The table of mutants tells the truth: what it counts as the same is the same."""

import json
import re
from pathlib import Path

import pytest

from mutation import __main__ as mutation
from test_project import LAYERS, REPOSITORY

DIFF = """--- src/grf_fusion/_state.py
+++ src/grf_fusion/_state.py
@@ -1,3 +1,3 @@
 def check_state(state):
-{}
+{}
     return state"""
LOOP = "    for field, value in zip(FusionState._fields, state{}):"


@pytest.mark.parametrize(
    ("name", "before", "after", "same"),
    [
        ("_state", LOOP.format(", strict=True"), LOOP.format(", strict=None"), True),
        ("_state", LOOP.format(", strict=True"), LOOP.format(", "), True),
        ("_state", LOOP.format(", strict=True"), "    for field, value in None:", False),
        ("_masks", LOOP.format(", strict=True"), LOOP.format(", strict=None"), False),
        ("_any", '    f(cast("int", x))', "    f(cast(None, x))", True),
        ("_any", '    f(cast("int", x))', '    f(cast("int", None))', False),
    ],
)
def test_same_is_only_what_is_listed(name: str, before: str, after: str, same: bool) -> None:
    assert (mutation.reason(name, DIFF.format(before, after)) is not None) is same


def test_table_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diff = DIFF.format("    a = 1", "    a = 2")
    same = DIFF.format('    f(cast("int", x))', "    f(cast(None, x))")
    results = {
        "m_1": {"outcome": "killed"},
        "m_2": {"outcome": "timeout"},
        "m_3": {"outcome": "survived", "diff": diff},
        "m_4": {"outcome": "survived", "diff": same},
    }
    (tmp_path / "_state.json").write_text(json.dumps(results))
    monkeypatch.setattr(mutation, "RESULTS", tmp_path)
    lines = mutation.table().splitlines()
    assert lines[2] == "| `_state.py` | 4 | 2 | 1 | 1 | 66.7% |"
    assert lines[3] == "| together | 4 | 2 | 1 | 1 | 66.7% |"
    assert "m_3: survived" in lines
    assert "+    a = 2" in lines
    assert any(line.startswith("m_4: typing.cast") for line in lines)


def test_page_shows_the_table() -> None:
    page = (REPOSITORY / "docs" / "mutation.md").read_text("utf-8")
    table = mutation.table().split("\n\n")[0]
    assert table in page


def test_most_mutants_are_noticed() -> None:
    (share,) = re.findall(r"^\| together .* ([\d.]+)% \|$", mutation.table(), re.MULTILINE)
    assert float(share) >= 95


def test_files_and_tests_exist() -> None:
    assert set(mutation.TESTS) <= set(LAYERS)
    named = {a for chosen in mutation.TESTS.values() for a in chosen if a.endswith(".py")}
    assert all((REPOSITORY / name).is_file() for name in named)
