"""The table of mutants tells the truth: what it counts as the same is the same."""

import json
import re
from pathlib import Path

import pytest

from mutation import __main__ as mutation
from test_project import REPOSITORY

DIFF = """--- src/grf_fusion/_chain/state.py
+++ src/grf_fusion/_chain/state.py
@@ -1,3 +1,3 @@
 def check_state(state):
-{}
+{}
     return state"""
LOOP = "    for field, value in zip(FusionState._fields, state{}):"


@pytest.mark.parametrize(
    ("name", "before", "after", "same"),
    [
        ("_chain/state", LOOP.format(", strict=True"), LOOP.format(", strict=None"), True),
        ("_chain/state", LOOP.format(", strict=True"), LOOP.format(", "), True),
        ("_chain/state", LOOP.format(", strict=True"), "    for field, value in None:", False),
        ("_inputs/masks", LOOP.format(", strict=True"), LOOP.format(", strict=None"), False),
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
        "grf_fusion._chain.state.m_1": {"outcome": "killed"},
        "grf_fusion._chain.state.m_2": {"outcome": "timeout"},
        "grf_fusion._chain.state.m_3": {"outcome": "survived", "diff": diff},
        "grf_fusion._chain.state.m_4": {"outcome": "survived", "diff": same},
    }
    (tmp_path / "_chain").mkdir()
    (tmp_path / "_chain" / "state.json").write_text(json.dumps(results))
    rest = {
        "grf_fusion.viz._gates.m_1": {"outcome": "killed"},
        "grf_fusion.viz._gates.others": {"outcome": "not checked", "count": 24},
        "grf_fusion._layers.block.m_1": {"outcome": "killed"},
    }
    (tmp_path / "rest.json").write_text(json.dumps(rest))
    monkeypatch.setattr(mutation, "RESULTS", tmp_path)
    lines = mutation.table().splitlines()
    assert lines[2:6] == [
        "| `_chain/state.py` | 4 of 4 | 2 of 3 | 1 | 1 |",
        "| `_layers/block.py` | 1 of 1 | 1 of 1 | 0 | 0 |",
        "| `viz/_gates.py` | 1 of 25 | 1 of 1 | 0 | 0 |",
        "| All | 6 of 30 | 4 of 5 | 1 | 1 |",
    ]
    assert "grf_fusion._chain.state.m_3: survived" in lines
    assert "+    a = 2" in lines
    assert any(line.startswith("grf_fusion._chain.state.m_4: typing.cast") for line in lines)


def test_every_file_belongs_to_one_run() -> None:
    rest, own = mutation.files_of(mutation.REST), set(mutation.TESTS) - {mutation.REST}
    assert {"_chain/fusion", "_layers/block", "viz/_heat_maps", "diagnostics/__init__"} <= set(rest)
    assert not own & set(rest)
    assert [mutation.files_of(name) for name in sorted(own)] == [[name] for name in sorted(own)]
    assert len(rest) + len(own) == len(list((REPOSITORY / "src" / "grf_fusion").rglob("*.py")))


def test_page_shows_the_table() -> None:
    page = (REPOSITORY / "docs" / "mutation.md").read_text("utf-8")
    table = mutation.table().split("\n\n")[0]
    assert table in page


def test_most_mutants_are_noticed() -> None:
    total = re.search(r"^\| All \| \d+ of \d+ \| (\d+) of (\d+) \|", mutation.table(), re.MULTILINE)
    killed, differ = map(int, total.groups())
    assert 0.95 * differ <= killed <= differ


def test_files_and_tests_exist() -> None:
    own = set(mutation.TESTS) - {mutation.REST}
    assert all((REPOSITORY / "src" / "grf_fusion" / f"{name}.py").is_file() for name in own)
    named = {a for chosen in mutation.TESTS.values() for a in chosen if a.endswith(".py")}
    assert all((REPOSITORY / name).is_file() for name in named)
