"""What is published: the same bytes wherever and whenever it is built, and only what is ours.

Two copies of the repository that differ in all that a build must not see (path, times, modes,
order of the files, umask, clock zone, locale, hash seed) give the same sdist and the same wheel.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from test_project import REPOSITORY, SOURCE

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
VERSION = PROJECT["project"]["version"]
ROOTS = [
    root.lstrip("/") for root in PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
]
# hatchling adds these two by itself.
ADDED = {".gitignore", "PKG-INFO"}
# The layers by themselves are below 95,000; diagnostics and pictures are the rest.
MOST_BYTES = 160_000


@dataclass(frozen=True)
class Built:
    """What one build made."""

    sdist: Path
    wheel: Path


def tracked(root: Path) -> list[str]:
    """Return the files under the roots of the sdist, without what running tests leaves there."""
    found: list[str] = []
    for name in ROOTS:
        path = root / name
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        kept = (file for file in files if file.is_file() and "__pycache__" not in file.parts)
        found += [file.relative_to(root).as_posix() for file in kept]
    return found


def copy(target: Path, *, odd: bool) -> Path:
    """Copy what the sdist is made from; an odd copy differs in what must not matter."""
    names = [*tracked(REPOSITORY), ".gitignore"]
    for name in reversed(names) if odd else names:
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, file)
        file.chmod(0o600 if odd else 0o664)
        os.utime(file, (86_400, 86_400) if odd else (1_700_000_000, 1_700_000_000))
    return target


def build(source: Path, out: Path, *, odd: bool) -> Built:
    """Build sdist and wheel with what is installed here."""
    other = {"TZ": "Pacific/Chatham", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    # An epoch that is set outside would be used in both.
    environment = {k: v for k, v in os.environ.items() if k != "SOURCE_DATE_EPOCH"}
    run = subprocess.run(
        command,
        env=environment | (other if odd else {}),
        umask=0o077 if odd else 0o002,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return Built(sdist, wheel)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    source = copy(tmp_path_factory.mktemp("source"), odd=False)
    return build(source, tmp_path_factory.mktemp("dist"), odd=False)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names_in(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_the_same_bytes_elsewhere_and_at_another_time(built: Built, tmp_path: Path) -> None:
    source = copy(tmp_path / "a folder of another name", odd=True)
    again = build(source, tmp_path / "dist", odd=True)
    assert digest(again.sdist) == digest(built.sdist)
    assert digest(again.wheel) == digest(built.wheel)


def test_other_content_has_other_bytes(built: Built, tmp_path: Path) -> None:
    source = copy(tmp_path / "source", odd=False)
    with (source / "src" / "grf_fusion" / "__init__.py").open("a") as file:
        file.write("\n")
    again = build(source, tmp_path / "dist", odd=False)
    assert digest(again.sdist) != digest(built.sdist)
    assert digest(again.wheel) != digest(built.wheel)


def test_the_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    info = f"grf_fusion-{VERSION}.dist-info"
    with zipfile.ZipFile(built.wheel) as archive:
        names = archive.namelist()
    assert sorted(names) == sorted(
        [
            *(f"grf_fusion/{path.relative_to(SOURCE).as_posix()}" for path in SOURCE.rglob("*.py")),
            "grf_fusion/py.typed",
            *(f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")),
        ]
    )


def test_the_sdist_holds_the_repository_and_nothing_else(built: Built) -> None:
    assert names_in(built.sdist) == {*tracked(REPOSITORY), *ADDED}


def test_the_sdist_lacks_nothing_that_git_tracks() -> None:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("no git repository, but a copy of its files")
    command = ["git", "-C", str(REPOSITORY), "ls-files", "-z"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert {*tracked(REPOSITORY), ".gitignore"} >= set(said.rstrip("\0").split("\0"))


def test_modes_and_owners_are_nobodys(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        members = archive.getmembers()
    assert {(m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, "", "")}
    assert {m.mode for m in members} <= {0o644, 0o755}


def test_the_wheel_is_small(built: Built) -> None:
    assert built.wheel.stat().st_size < MOST_BYTES


def test_the_registry_would_accept_it(built: Built) -> None:
    command = [sys.executable, "-m", "twine", "--no-color", "check", "--strict"]
    command += [str(built.sdist), str(built.wheel)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    assert len(re.findall(r"PASSED$", run.stdout, re.MULTILINE)) == 2
