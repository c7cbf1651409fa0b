"""The promises that the project makes outside its mathematics: names, version, imports, files."""

import ast
import doctest
import graphlib
import importlib
import importlib.metadata
import inspect
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Container, Generator, Iterable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import settings
from packaging.specifiers import SpecifierSet

import grf_fusion
import grf_fusion.baselines
import grf_fusion.checkpoints
import grf_fusion.diagnostics
import grf_fusion.env
import grf_fusion.parallel
import grf_fusion.viz

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src" / "grf_fusion"
BENCHMARKS = REPOSITORY / "benchmarks"

# Every entry at the top of the package, with its floor: a file imports from lower floors, and from
# its own folder without a circle. Nothing of ours imports the package itself, on the top floor.
FLOORS = {
    "_checks": 0,
    "_inputs": 1,
    "_eager": 2,
    "_layers": 3,
    "_adapters": 4,
    "_chain": 4,
    "_training": 4,
    "baselines": 4,
    "checkpoints": 5,
    "diagnostics": 5,
    "env": 5,
    "parallel": 5,
    "viz": 6,
    # For what 0.1.0 pickled; it goes when 1.0 does not have to read that any more.
    "_state": 6,
    "__init__": 6,
}
MOST_LINES = 285
# The public interface itself: docstrings are more than half of these.
LONGER = {"_layers.block": 295, "_chain.fusion": 380}


def sources(folder: Path = SOURCE) -> dict[str, str]:
    """Return the text of every file of a package by its module name; a folder's is its name."""
    texts = {
        ".".join(path.relative_to(folder).with_suffix("").parts): path.read_text("utf-8")
        for path in sorted(folder.rglob("*.py"))
    }
    return {name.removesuffix(".__init__"): text for name, text in texts.items()}


def imported_modules(text: str, known: Container[str], ours: str = "grf_fusion") -> set[str]:
    """Return the modules of a package of ours that a file imports, wherever the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = ours if node.level else ""
            module = ".".join(part for part in (module, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == ours:
                parts = rest.split(".")
                longest = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
                found.add(next((module for module in longest if module in known), "__init__"))
    return found


def wrong_imports(texts: Mapping[str, str], known: Container[str]) -> list[str]:
    """Return every import that goes neither to a lower floor nor to the file's own folder."""
    wrong: list[str] = []
    for name, text in texts.items():
        for target in sorted(imported_modules(text, known)):
            folder, other = name.partition(".")[0], target.partition(".")[0]
            if (folder != other or folder == "__init__") and FLOORS[other] >= FLOORS[folder]:
                wrong.append(f"{name} imports {target}")
    return wrong


def circle(texts: Mapping[str, str], ours: str = "grf_fusion") -> list[str]:
    """Return files that import each other in a circle, if some do."""
    graph = {name: imported_modules(text, texts, ours) for name, text in texts.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def third_party(texts: Iterable[str]) -> set[str]:
    """Return the packages that files import, without Python's own and ours."""
    found: set[str] = set()
    for text in texts:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"grf_fusion"}


def assert_lines(text: str) -> list[int]:
    """Return the lines of a file that hold an `assert` statement."""
    return [node.lineno for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Assert)]


def public_names(module: ModuleType) -> list[str]:
    """Return the names that a module offers to a user, in order."""
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    )


def positional_arguments(callee: type) -> list[str]:
    """Return the arguments that a class takes by position."""
    kinds = inspect.Parameter
    return [
        parameter.name
        for parameter in inspect.signature(callee).parameters.values()
        if parameter.kind
        in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD, kinds.VAR_POSITIONAL)
    ]


def top_release(changelog: str) -> str | None:
    """Return the version of the first release that a changelog names."""
    match = re.search(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", changelog, re.MULTILINE)
    return match[1] if match else None


def added_packages(statement: str) -> set[str]:
    """Return the packages that a statement imports beyond those that our dependencies bring."""
    script = f"""
import json, sys
import einops, torch, typing_extensions
before = {{name.partition(".")[0] for name in sys.modules}}
{statement}
after = {{name.partition(".")[0] for name in sys.modules}}
print(json.dumps(sorted(after - before - sys.stdlib_module_names)))
"""
    # -P: the folder that the tests run in must not stand in for an installed package.
    command = [sys.executable, "-P", "-c", script]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return set(json.loads(run.stdout))


def doctest_failures(module: ModuleType) -> tuple[int, int]:
    """Return how many examples in a module's docstrings failed, and how many there are."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed = attempted = 0
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        torch.manual_seed(0)
        result = doctest.DocTestRunner(optionflags=flags).run(test)
        failed += result.failed
        attempted += result.attempted
    return failed, attempted


def public_modules() -> list[type]:
    """Return every public class that is an `nn.Module`."""
    packages = (grf_fusion, grf_fusion.baselines)
    values = [getattr(package, name) for package in packages for name in package.__all__]
    return [v for v in values if inspect.isclass(v) and issubclass(v, torch.nn.Module)]


@pytest.mark.parametrize(
    "package",
    [grf_fusion, grf_fusion.baselines, grf_fusion.diagnostics, grf_fusion.viz],
    ids=lambda p: p.__name__,
)
def test_all_is_sorted_and_equals_the_public_names(package: ModuleType) -> None:
    assert package.__all__ == public_names(package)


def test_other_modules_offer_what_they_define() -> None:
    loaders = ["load_author_checkpoint", "load_checkpoint", "save_checkpoint"]
    assert grf_fusion.checkpoints.__all__ == loaders
    assert grf_fusion.env.__all__ == ["environment"]
    assert grf_fusion.parallel.__all__ == ["tensor_parallel_plan"]


def test_public_names_can_differ() -> None:
    module = ModuleType("stand_in")
    vars(module).update(b=1, a=2, _private=3, some_module=ast)
    assert public_names(module) == ["a", "b"]


def version_fits(changelog: str, version: str) -> bool:
    """Whether a version is the top release, or where changes are unreleased, one to come."""
    top = top_release(changelog)
    section = re.search(r"^## \[Unreleased\]\n(.*?)(?=^## |\Z)", changelog, re.M | re.S)
    if section is None or not section[1].strip():
        return version == top
    coming = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)\.dev\d+", version)
    if coming is None or top is None:
        return False
    return tuple(map(int, coming.groups())) > tuple(map(int, top.split(".")))


def test_version_is_the_top_release_of_the_changelog_or_one_to_come() -> None:
    changelog = (REPOSITORY / "CHANGELOG.md").read_text("utf-8")
    assert version_fits(changelog, importlib.metadata.version("grf-fusion"))
    released = "# Changelog\n\n## [Unreleased]\n\n## [1.2.2] - 2026-11-20\n"
    changed = released.replace("ed]\n", "ed]\n\n- A change.\n")
    assert version_fits(released, "1.2.2")
    assert version_fits(changed, "1.3.0.dev0")
    assert version_fits(changed.replace("1.2.2", "1.9.0"), "1.10.0.dev0")
    for text, version in (
        (released, "1.3.0.dev0"),
        (changed, "1.2.2"),
        (changed, "1.2.2.dev0"),
        (changed, "1.3.0"),
    ):
        assert not version_fits(text, version)


@pytest.mark.parametrize(
    ("changelog", "version"),
    [
        ("# Changelog\n\n## [1.2.3] - 2026-11-21\n\n## [1.2.2] - 2026-11-20\n", "1.2.3"),
        ("# Changelog\n\n## [Unreleased]\n\n## [1.2.2] - 2026-11-20\n", "1.2.2"),
        ("# Changelog\n\n## 1.2.3\n", None),
    ],
    ids=["release", "unreleased", "no-release"],
)
def test_top_release(changelog: str, version: str | None) -> None:
    assert top_release(changelog) == version


def test_import_brings_no_further_package() -> None:
    parts = ("baselines", "checkpoints", "diagnostics", "env")
    everything = "import grf_fusion" + "".join(f", grf_fusion.{part}" for part in parts)
    assert added_packages(everything) == {"grf_fusion"}


def test_added_packages_sees_a_further_package() -> None:
    assert "pytest" in added_packages("import json, pytest")


def test_every_dependency_is_imported() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    needs = [*project["dependencies"], *project["optional-dependencies"]["viz"]]
    declared = {re.match(r"[\w-]+", need)[0].replace("-", "_") for need in needs}
    assert declared == third_party(sources().values())


def test_third_party_packages_are_seen() -> None:
    texts = [
        "import os.path, torch.nn as nn",
        "def late():\n    from einops import rearrange",
        "from grf_fusion import x",
    ]
    assert third_party(texts) == {"torch", "einops"}


def test_the_top_of_the_package_is_short() -> None:
    """A newcomer sees the architecture in 13 entries, beside the package's own and the shim."""
    top = {name.partition(".")[0] for name in sources()}
    assert top == set(FLOORS)
    assert len(top - {"__init__", "_state"}) <= 13
    assert {path.name for path in SOURCE.iterdir() if path.suffix not in ("", ".py")} == {
        "py.typed"
    }


def test_imports_point_one_way() -> None:
    texts = sources()
    assert wrong_imports(texts, texts) == []
    assert circle(texts) == []


@pytest.mark.parametrize(
    "text",
    [
        "from grf_fusion._chain.step import advance",
        "from grf_fusion._chain import step",
        "from grf_fusion import _chain",
        "from grf_fusion._adapters import adapter",
        "from grf_fusion import GatedFusionUnit",
        "from ._chain.fusion import GatedRecurrentFusion",
        "from . import _chain",
        "import grf_fusion._chain.fusion",
        "import grf_fusion",
        "def late():\n    import grf_fusion._chain",
        "from grf_fusion.baselines._concat import ConcatFusion",
        "from grf_fusion.baselines import ConcatFusion",
    ],
    ids=[
        "file",
        "from",
        "folder",
        "next door",
        "top",
        "relative",
        "dot",
        "import",
        "package",
        "late",
        "in a public folder",
        "public folder",
    ],
)
def test_wrong_imports_are_seen(text: str) -> None:
    assert len(wrong_imports({"_layers.gate": text}, sources())) == 1
    assert len(wrong_imports({"_training.modality_dropout": text}, sources())) == 1


def test_right_imports_pass() -> None:
    text = "import torch\nfrom grf_fusion._checks.arguments import ShapeError\n"
    text += "from grf_fusion._inputs import masks\nfrom grf_fusion._layers import attention"
    assert wrong_imports({"_layers.gate": text}, sources()) == []


def test_a_circle_is_seen() -> None:
    texts = {
        "_eager.layout": "from grf_fusion._eager import dropout",
        "_eager.dropout": "def late():\n    from grf_fusion._eager.layout import attend",
        "env": "import torch",
    }
    assert set(circle(texts)) == {"_eager.layout", "_eager.dropout"}
    assert circle({**texts, "_eager.dropout": "import torch"}) == []


def strangers(texts: Mapping[str, str]) -> list[str]:
    """Return every import of a benchmark that goes neither to its own folder nor to `common`."""
    return [
        f"{name} imports {target}"
        for name, text in texts.items()
        for target in sorted(imported_modules(text, texts, "benchmarks"))
        if target.partition(".")[0] not in (name.partition(".")[0], "common")
    ]


def test_a_benchmark_imports_its_own_folder_and_what_all_share() -> None:
    texts = sources(BENCHMARKS)
    assert {"common", "speed", "gpu", "quality"} <= texts.keys()
    assert strangers(texts) == []
    assert circle(texts, "benchmarks") == []


def test_a_benchmark_that_imports_another_is_seen() -> None:
    texts = {
        "common.clock": "from benchmarks.speed import rows",
        "speed.rows": "from benchmarks.common import clock",
        "quality.run": "def late():\n    from benchmarks.speed.rows import Row",
    }
    assert strangers(texts) == [
        "common.clock imports speed.rows",
        "quality.run imports speed.rows",
    ]
    assert set(circle(texts, "benchmarks")) == {"common.clock", "speed.rows"}


def test_no_assert_statement_in_the_package() -> None:
    lines = {name: assert_lines(text) for name, text in sources().items()}
    assert {name: found for name, found in lines.items() if found} == {}


def test_assert_lines_are_seen() -> None:
    assert assert_lines("def f(x):\n    assert x\n    return x\n") == [2]


def test_no_file_is_too_long() -> None:
    lines = {name: len(text.splitlines()) for name, text in sources().items()}
    assert lines
    assert {
        name: count for name, count in lines.items() if count > LONGER.get(name, MOST_LINES)
    } == {}


@pytest.mark.parametrize("module", public_modules(), ids=lambda module: module.__name__)
def test_constructor_takes_one_positional_argument_at_most(module: type) -> None:
    assert len(positional_arguments(module)) <= 1


def test_positional_arguments_are_counted() -> None:
    class StandIn:
        def __init__(self, first: int, /, second: int, *rest: int, third: int) -> None: ...

    assert positional_arguments(StandIn) == ["first", "second", "rest"]


@pytest.mark.parametrize("name", sources())
def test_docstring_examples_run(name: str) -> None:
    module = grf_fusion if name == "__init__" else importlib.import_module(f"grf_fusion.{name}")
    assert doctest_failures(module)[0] == 0


@pytest.mark.parametrize("module", public_modules(), ids=lambda module: module.__name__)
def test_every_public_module_has_an_example(module: type) -> None:
    examples = doctest.DocTestFinder().find(module)
    assert sum(len(test.examples) for test in examples) > 0


def test_doctest_failures_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    module = ModuleType("stand_in", ">>> 1 + 1\n3\n>>> 1 + 1\n2\n")
    assert doctest_failures(module) == (1, 2)
    assert "Expected:" in capsys.readouterr().out


def python_blocks(text: str) -> list[str]:
    """Return the Python code that a Markdown text shows."""
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_readme_code_runs_and_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = python_blocks((REPOSITORY / "README.md").read_text("utf-8"))
    assert blocks
    code = compile("\n".join(blocks), "README.md", "exec")
    exec(code, {"__name__": "readme"})  # noqa: S102 - the code is our own README
    said = re.findall(r"^print\(.*\)  # (\(.*?\))", "\n".join(blocks), re.MULTILINE)
    assert said
    assert capsys.readouterr().out == "".join(f"{one}\n" for one in said)


def test_python_blocks_are_found() -> None:
    text = "```python\na = 1\n```\n```bash\nls\n```\n```python\nb = 2\n\nc = 3\n```\n"
    assert python_blocks(text) == ["a = 1\n", "b = 2\n\nc = 3\n"]


def test_installed_files_are_the_package_and_nothing_else() -> None:
    distribution = importlib.metadata.distribution("grf-fusion")
    if "editable" in (distribution.read_text("direct_url.json") or ""):
        pytest.skip("an editable installation has no files of its own: install the wheel")
    files = {file.as_posix() for file in distribution.files or ()}
    # pip adds these, and bytecode, to what the wheel holds.
    of_pip = {"INSTALLER", "REQUESTED", "direct_url.json"}
    kept = {f for f in files if not f.endswith(".pyc") and f.rpartition("/")[2] not in of_pip}
    info = f"grf_fusion-{distribution.version}.dist-info"
    assert kept == {
        *(f"grf_fusion/{path.relative_to(SOURCE).as_posix()}" for path in SOURCE.rglob("*.py")),
        "grf_fusion/py.typed",
        *(f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")),
    }


def test_the_gate_runs_everything_and_measures_it() -> None:
    """What pytest leaves out by default, `.ci/run` does not."""
    everything = 'python -m pytest --full -m ""'
    script = (REPOSITORY / ".ci" / "run").read_text("utf-8")
    runs = re.findall(r"^ *(python -m pytest .*)$", script, re.MULTILINE)
    assert len(runs) == 2
    assert all(run.startswith(f"{everything} ") for run in runs)
    assert runs[-1].startswith(f"{everything} --cov ")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["tool"]
    options = project["pytest"]["addopts"]
    assert options[options.index("-m") + 1] == "not slow and not compile"
    assert not [option for option in options if option.startswith("--cov")]
    assert project["coverage"]["report"]["fail_under"] == 100


@pytest.fixture
def same_profile(pytestconfig: pytest.Config) -> Generator[None]:
    """Load the profile of this run again: that of a run inside is the whole process's."""
    yield
    settings.load_profile("full" if pytestconfig.getoption("full") else "third")


@pytest.mark.usefixtures("same_profile")
@pytest.mark.parametrize(("options", "tried"), [([], [11, 34]), (["--full"], [30, 100])], ids=str)
def test_a_third_of_the_examples_is_tried_unless_all_are_asked_for(
    pytester: pytest.Pytester, options: list[str], tried: list[int]
) -> None:
    pytester.makeconftest((REPOSITORY / "tests" / "conftest.py").read_text("utf-8"))
    pytester.makepyfile(
        f"""
        from hypothesis import given, strategies as st
        from strategies import examples

        tried = [0, 0]

        @examples(30)
        @given(st.integers())
        def test_some(number):
            tried[0] += 1

        @given(st.integers())
        def test_usual(number):
            tried[1] += 1

        def test_counts():
            assert tried == {tried}
        """
    )
    found = pytester.runpytest_inprocess("-p", "no:cacheprovider", *options)
    found.assert_outcomes(passed=3)


@pytest.mark.usefixtures("same_profile")
def test_coverage_stops_for_what_is_slow_compiles_or_reaches_no_further_line(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    stand_in = SimpleNamespace(
        stop=lambda: calls.append("stop"), start=lambda: calls.append("start")
    )
    monkeypatch.setattr("coverage.Coverage.current", lambda: stand_in)
    pytester.makeconftest((REPOSITORY / "tests" / "conftest.py").read_text("utf-8"))
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.slow
        def test_slow():
            raise ValueError

        @pytest.mark.compile
        def test_compiles():
            pass

        def test_quick():
            pass
        """,
        test_fuzz="def test_wrong_call(): pass",
    )
    found = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    found.assert_outcomes(passed=3, failed=1)
    assert calls == ["stop", "start"] * 3


@pytest.mark.usefixtures("same_profile")
@pytest.mark.parametrize(
    ("folder", "outcomes"),
    [("there", {"passed": 1, "failed": 1, "skipped": 1}), ("missing", {"skipped": 3})],
    ids=["data", "no-data"],
)
def test_skip_although_the_data_are_there_fails(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
    outcomes: dict[str, int],
) -> None:
    (pytester.path / "there").mkdir()
    monkeypatch.setenv("GRF_FUSION_DATA", str(pytester.path / folder))
    pytester.makeconftest((REPOSITORY / "tests" / "conftest.py").read_text("utf-8"))
    pytester.makepyfile(
        """
        import pytest

        def test_uses_data(data_dir):
            assert data_dir.is_dir()

        def test_skips_with_data(data_dir):
            pytest.skip("a reason of its own")

        def test_skips_without_data():
            pytest.skip("a reason of its own")
        """
    )
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(**outcomes)


def test_pinned_versions_run_on_the_oldest_python() -> None:
    """Also on its first release, which a distribution of Linux may keep."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    lines = (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
    refused = []
    for name in (line.partition("==")[0] for line in lines if line and line[0] != "#"):
        try:
            wanted = importlib.metadata.metadata(name)["Requires-Python"]
        except importlib.metadata.PackageNotFoundError:
            # Only needed for an extra that is not installed here.
            continue
        if wanted is not None and oldest not in SpecifierSet(wanted):
            refused.append((name, wanted))
    assert not refused
