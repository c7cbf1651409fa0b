"""Change the source in every way that mutmut knows, and count what the tests notice.

    python -m mutation _inputs/masks     these files of src/grf_fusion; without names, all
    python -m mutation rest --every 20   all files that have no tests below, one mutant in 20
    python -m mutation --table           what is known so far, and every mutant that is left

A run can be stopped and goes on where it was. Each has a working folder in .mutation/, a copy
of the repository's, so that nothing here changes while it runs; results are kept in
mutation/results/ as JSON. Needs `pip install mutmut`; one process, and a time limit a mutant.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
WORK = REPOSITORY / ".mutation"
RESULTS = Path(__file__).parent / "results"
COPIED = ("src", "tests", "benchmarks", "pyproject.toml", "README.md", "CHANGELOG.md")

# For each file the tests that look closely at it, as pytest's arguments; seconds altogether, since
# mutmut runs for each mutant those of them that reach its function.
ERRORS = ["tests/test_errors.py", "tests/test_messages.py"]
PROPERTIES = [*ERRORS, "tests/test_guarantees.py", "tests/test_reference.py", "-k"]
EVERY_ERROR = "test_errors or test_messages"
TESTS = {
    "checkpoints/_files": ["tests/test_checkpoints.py", "tests/test_messages.py"],
    "_layers/gate": [*ERRORS, "tests/test_gate.py"],
    "_training/gradient_modulation": [
        "tests/test_gradient_modulation.py",
        "tests/test_messages.py",
    ],
    "_inputs/masks": [*ERRORS, "tests/test_masks.py"],
    "_training/modality_dropout": [*PROPERTIES, f"{EVERY_ERROR} or modality_dropout or repr_shows"],
    "_checks/options": ERRORS,
    "_inputs/positions": ["tests/test_positions.py"],
    "_inputs/scale": ["tests/test_scale.py"],
    "_eager/pooling": ["tests/test_pooling.py"],
    "_inputs/lengths": ["tests/test_rows.py", "tests/test_masks.py"],
    "_checks/arguments": ERRORS,
    "_chain/state": [*ERRORS, "tests/test_state.py"],
    "env": ["tests/test_env.py"],
}
# Where many tests look at a file, and all minutes that each mutant takes cannot be had.
REST = "rest"
TESTS[REST] = [
    *ERRORS,
    "tests/test_checkpoints.py",
    "tests/test_state.py",
    "tests/test_parts.py",
    "tests/test_summary.py",
    "tests/test_scale.py",
    "tests/test_collate.py",
    "tests/test_rows.py",
    "tests/test_viz.py",
    "tests/test_packing.py",
    "tests/test_tiles.py",
    "tests/test_diagnostics.py",
    "tests/test_baselines.py",
    "tests/test_adapter.py",
    "tests/test_reference.py",
    "tests/test_traps.py",
    "tests/test_guarantees.py",
    # What mutmut puts into each function cannot be compiled, and is one more call.
    "-k",
    "not one_graph and not export and not said_once and not decided_once",
]

# Survivors that no test can notice, because they do the same: the file, where alone the two lines
# may differ, and why that does not matter.
EQUIVALENT = [
    ("", r"cast\((None|\"[^\"]*\"|\w+), ", "typing.cast returns its second argument, whatever"),
    ("checkpoints/_files", r", (strict=\w+)?\)$", "the names have just been found equal"),
    ("_eager/dropped_attention", r", (strict=\w+)?\)$", "query, key and value have a span each"),
    (
        "_eager/dropped_attention",
        r", (memory_format=DENSE|out=weight)?\)$",
        "only where the numbers lie differs",
    ),
    ("_eager/pooling", r"dim=[+-]1\)$", "both have two axes, so that 1 is -1"),
    ("_layers/gate", r", (strict=\w+)?\)\)", "both have an entry for each axis but the last"),
    (
        "_training/gradient_modulation",
        r", (strict=\w+)?\)(\)|:)",
        "each has one entry a modality or an axis",
    ),
    ("_eager/layout", r", (strict=\w+)?\):", "each group has a longest member"),
    ("_eager/layout", r"is_plain_call\(q, (fewest=FEW)?\)", "both ways compute the same"),
    (
        "_inputs/masks",
        r"if (mean\.dtype == values\.dtype|\(mean\.dtype == values\.dtype\) and False) else",
        "`to` the same dtype changes nothing",
    ),
    ("_inputs/masks", r"lengths\.unsqueeze\([+-]1\)", "lengths have one axis, so that 1 is -1"),
    (
        "_inputs/scale",
        r"(dim=(None|tuple\(range\([^()]*\)\)), )?dtype=wide",
        "the norm of norms over any axes is the norm of all",
    ),
    ("_training/modality_dropout", r"-[12]\.0", "a draw is at least 0: -1 and -2 are both less"),
    ("_inputs/positions", r"steps\.unsqueeze\([+-]1\)", "steps have one axis, so that 1 is -1"),
    ("_checks/arguments", r", (strict=\w+)?\):", "the numbers of axes have just been found equal"),
    ("_checks/arguments", r"fits = (False|None)", "only its truth is asked for"),
    ("_chain/state", r", (strict=\w+)?\):", "a FusionState has as many values as it has fields"),
    ("_chain/step", r", (strict=\w+)?\)\):", "it has just been found a pair"),
    ("baselines/_cross_modal", r"need_weights=\w+", "the weights are thrown away"),
    ("baselines/_mult_stack", r"steps\.unsqueeze\([+-]1\)", "steps have one axis, so that 1 is -1"),
    ("diagnostics/_missing_curve", r"~call\.here, [23]\.0", "luck is below 1: both come last"),
    ("viz/_context_path", r"\[:[23]\]", "only the first two are read"),
    ("viz/_charts", r", (strict=\w+)?$", "there are more markers than curves, on purpose"),
    (
        "diagnostics/_gate_statistics",
        r"mean\(dim=[+-]1\)",
        "variances have two axes, so that 1 is -1",
    ),
    (
        "_layers/block",
        r"context\.shape\[[+-]1\] == block",
        "a block that is not computed directly is called, which gives the same",
    ),
    (
        "_eager/layout",
        r"descending=True, (stable=True)?\)",
        "each row knows its place, so the order within a sample does not matter",
    ),
]

KINDS = ("killed", "same", "left")

# Outcome of the mutants that were not drawn, one entry for all of a file.
NOT_TRIED = "not checked"

CONFIGURATION = """[mutmut]
source_paths=src
only_mutate=
{files}
also_copy=
{copied}
pytest_add_cli_args=
    --numprocesses=0
    --full
    -p
    no:cacheprovider
pytest_add_cli_args_test_selection=
{tests}
use_git_change_detection=false
"""


def listed(lines: Iterable[str]) -> str:
    """Write a list as setup.cfg wants it."""
    return "\n".join(f"    {line}" for line in lines)


def files_of(name: str) -> list[str]:
    """Return the file, or all that have no tests of their own above."""
    if name != REST:
        return [name]
    package = REPOSITORY / "src" / "grf_fusion"
    every = (path.relative_to(package).with_suffix("") for path in package.rglob("*.py"))
    return sorted(str(path) for path in every if str(path) not in TESTS)


def prepare(name: str) -> Path:
    """Copy the repository; what mutmut remembers of an earlier run stays."""
    folder = WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    for entry in COPIED:
        source, target = REPOSITORY / entry, folder / entry
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    for path in (folder / "src").rglob("*.py"):
        # mutmut leaves a decorated function alone, and this decorator does nothing when it runs.
        text = re.sub(r"^ *@override\n", "", path.read_text("utf-8"), flags=re.MULTILINE)
        path.write_text(text, "utf-8")
    files = [f"src/grf_fusion/{file}.py" for file in files_of(name)]
    given = {"files": files, "copied": COPIED[2:], "tests": TESTS[name]}
    text = CONFIGURATION.format(**{key: listed(lines) for key, lines in given.items()})
    (folder / "setup.cfg").write_text(text, "utf-8")
    return folder


def run(name: str, every: int) -> None:
    """Try the mutants of one file that have not been tried, or one in so many of them."""
    environment = os.environ | {
        # The same examples for every mutant.
        "CI": "1",
        "OMP_NUM_THREADS": "1",
        # For tests/conftest.py.
        "GRF_FUSION_MUTATION": "1",
        "GRF_FUSION_DATA": str(WORK / "no-data"),
        # mutmut puts the mutated source on the path; our own must not stand before it.
        "PYTHONPATH": str(REPOSITORY),
    }
    worker = [sys.executable, "-P", "-m", "mutation.worker"]
    results = RESULTS / f"{name}.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    command = [*worker, str(results), str(every)]
    subprocess.run(command, cwd=prepare(name), env=environment, check=True)


def reason(name: str, diff: str) -> str | None:
    """Return why nobody can notice a mutant, or nothing if somebody could."""
    changed = [line for line in diff.splitlines() if re.match(r"[+-](?!\+\+|--)", line)]
    for file, pattern, why in EQUIVALENT:
        rest = {re.sub(pattern, "", line[1:]) for line in changed}
        if file in ("", name) and len(changed) == 2 and len(rest) == 1:
            return why
    return None


def table() -> str:
    """Return what is known of each file, and every mutant that no test notices."""
    head = ["File", "Tried", "Killed", "Equivalent", "Not noticed"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    left: list[str] = []
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for path in sorted(RESULTS.rglob("*.json")):
        for mutant, result in json.loads(path.read_text("utf-8")).items():
            file = "/".join(mutant.removeprefix("grf_fusion.").split(".")[:-1])
            counts[file]["mutants"] += result.get("count", 1)
            if result["outcome"] == NOT_TRIED:
                continue
            why = reason(file, result.get("diff", ""))
            killed = result["outcome"] in ("killed", "timeout")
            counts[file][KINDS[0] if killed else KINDS[1] if why else KINDS[2]] += 1
            if not killed:
                left += [f"{mutant}: {why or result['outcome']}", result["diff"], ""]
    lines += [row(f"`{file}.py`", counts[file]) for file in sorted(counts)]
    return "\n".join([*lines, row("All", sum(counts.values(), Counter())), "", *left])


def row(name: str, counts: Counter[str]) -> str:
    """Write one line of the table; killed are counted among those that can be noticed."""
    killed, same, left = (counts[kind] for kind in KINDS)
    tried = f"{killed + same + left} of {counts['mutants']}"
    cells = [name, tried, f"{killed} of {killed + left}", str(same), str(left)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m mutation", description=__doc__)
    parser.add_argument("names", nargs="*", help="files of src/grf_fusion, without .py")
    parser.add_argument("--every", type=int, default=1, help="try one mutant in so many")
    parser.add_argument("--table", action="store_true", help="show results instead of running")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(TESTS):
        parser.error(f"no tests are chosen for {sorted(unknown)}: add them to TESTS")
    if not arguments.table:
        for name in arguments.names or TESTS:
            run(name, arguments.every)
    sys.stdout.write(table())


if __name__ == "__main__":
    main()
