"""The files for GitHub: they run what is ours, may do little, and use what is pinned."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from test_project import REPOSITORY, top_release

GITHUB = REPOSITORY / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(GITHUB.glob("ISSUE_TEMPLATE/*.yml"))
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
USES = re.compile(r"^\s*(?:- )?uses: (.*)$", re.MULTILINE)
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
OWN = re.compile(r"\./\.github/workflows/\w+\.yml")

# All that any job may do beside reading the repository, and why.
MAY = {
    # To be recognised by the package registry, without a password.
    ("release", "publish"): {"id-token": "write"},
    # To put the site up.
    ("docs", "deploy"): {"pages": "write", "id-token": "write"},
}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def jobs() -> list[tuple[str, str, dict[str, Any]]]:
    """Return each job with the names of its workflow and itself."""
    return [(p.stem, name, job) for p in WORKFLOWS for name, job in load(p)["jobs"].items()]


def steps() -> list[dict[str, Any]]:
    return [step for *_, job in jobs() for step in job.get("steps", ())]


def unpinned(text: str) -> list[str]:
    """Return what a workflow uses without the full hash of a commit and its version."""
    return [u for u in USES.findall(text) if not PINNED.fullmatch(u) and not OWN.fullmatch(u)]


def test_workflows_are_there() -> None:
    assert [path.stem for path in WORKFLOWS] == ["docs", "release", "tests"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_hash_and_say_their_version(path: Path) -> None:
    text = path.read_text("utf-8")
    assert USES.findall(text)
    assert unpinned(text) == []


def test_one_action_has_one_version() -> None:
    found = {use for path in WORKFLOWS for use in USES.findall(path.read_text("utf-8"))}
    actions = [use.partition("@")[0] for use in found]
    assert len(actions) == len(set(actions))


@pytest.mark.parametrize(
    "use",
    [
        "actions/checkout@v7",
        "actions/checkout@main # v7.0.0",
        "actions/checkout@9c091bb # v7.0.0",
        "actions/checkout@9c091bb21b7c1c1d1991bb908d89e4e9dddfe3e0",
        "actions/checkout@9c091bb21b7c1c1d1991bb908d89e4e9dddfe3e0 # latest",
        "./elsewhere",
    ],
)
def test_what_is_not_pinned_is_seen(use: str) -> None:
    assert unpinned(f"steps:\n  - uses: {use}\n") == [use]


def test_jobs_may_do_nothing_that_they_need_not() -> None:
    for path in WORKFLOWS:
        assert load(path)["permissions"] == {}
    rights = {(workflow, name): job["permissions"] for workflow, name, job in jobs()}
    read = {"contents": "read"}
    assert {job: right for job, right in rights.items() if right != read} == MAY


def test_jobs_end() -> None:
    for workflow, name, job in jobs():
        assert "uses" in job or job["timeout-minutes"] <= 90, f"{workflow}: {name}"


def test_a_checkout_keeps_no_credentials() -> None:
    checkouts = [step for step in steps() if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts
    assert {step["with"]["persist-credentials"] for step in checkouts} == {False}


def test_no_command_holds_what_a_stranger_may_write() -> None:
    commands = [step["run"] for step in steps() if "run" in step]
    assert commands
    assert not [command for command in commands if "${{" in command]


def test_scripts_are_there() -> None:
    commands = {step["run"] for step in steps() if "run" in step}
    scripts = {command for command in commands if command.startswith(".")}
    assert scripts == {".ci/run"}
    assert (REPOSITORY / ".ci" / "run").is_file()


def test_all_supported_versions_are_tested() -> None:
    layers = load(GITHUB / "workflows" / "tests.yml")["jobs"]["layers"]["strategy"]["matrix"]
    language = "Programming Language :: Python :: "
    declared = [c.removeprefix(language) for c in PROJECT["classifiers"] if c.startswith(language)]
    assert layers["python"] == [version for version in declared if re.fullmatch(r"3\.\d+", version)]
    (floor,) = (d.partition(">=")[2] for d in PROJECT["dependencies"] if d.startswith("torch>="))
    assert layers["torch"] == [f"{floor}.0", "newest"]
    assert PROJECT["requires-python"] == f">={layers['python'][0]}"


def test_a_release_is_tested_attested_and_published_without_a_password() -> None:
    release = load(GITHUB / "workflows" / "release.yml")["jobs"]
    assert release["publish"]["needs"] == "build"
    assert release["build"]["needs"] == "tests"
    assert release["publish"]["environment"] == "release"
    publish = release["publish"]["steps"][-1]
    assert publish["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert publish["with"] == {"attestations": True}
    assert "secrets" not in json.dumps(release)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms_ask_for_the_environment(path: Path) -> None:
    form = load(path)
    if path.stem == "config":
        assert form == {"blank_issues_enabled": False}
        return
    assert {"name", "description", "body"} <= set(form)
    fields = {field["id"]: field for field in form["body"]}
    assert "`python -m grf_fusion.env`" in fields["environment"]["attributes"]["description"]
    # A code block by itself, so that nothing is taken for Markdown.
    assert fields["environment"]["attributes"]["render"] == "text"
    if path.stem != "idea":
        assert all(field["validations"]["required"] for field in form["body"])


def test_forms_are_there() -> None:
    assert {path.stem for path in FORMS} == {"bug", "config", "idea", "speed"}


def test_dependabot_minds_the_actions() -> None:
    (update,) = load(GITHUB / "dependabot.yml")["updates"]
    assert update["package-ecosystem"] == "github-actions"


def test_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = load(REPOSITORY / "CITATION.cff")
    changelog = (REPOSITORY / "CHANGELOG.md").read_text("utf-8")
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == PROJECT["name"]
    assert citation["abstract"] == PROJECT["description"]
    assert citation["keywords"] == PROJECT["keywords"]
    assert citation["license"] == PROJECT["license"]
    assert citation["version"] == top_release(changelog)
    assert f"## [{citation['version']}] - {citation['date-released']}" in changelog
    (paper,) = citation["references"]
    readme = " ".join((REPOSITORY / "README.md").read_text("utf-8").split())
    assert paper["title"] in readme
    (author,) = paper["authors"]
    assert f"{author['given-names']} {author['family-names']}" in readme
    assert paper["url"] in readme


def test_contributing_has_three_commands() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
    (block,) = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    commands = block.splitlines()
    assert len(commands) == 3
    (pinned,) = re.findall(
        r"^torch==.*$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE
    )
    assert f" {pinned} " in commands[0]
    for page in re.findall(r"\]\((?!https)([^)]+)\)", text):
        assert (REPOSITORY / page).is_file()
