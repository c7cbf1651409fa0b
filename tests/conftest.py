"""What every test shares: seeds, threads, the folder of real data and the rule on skips."""

import os
from collections.abc import Generator
from pathlib import Path

# Read by torch when it is imported: a compile inside a worker must not start workers of its own.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# oneDNN keeps code for the last 1,024 shapes of bfloat16, half a gigabyte that is no leak.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

import coverage
import pytest
import torch
from hypothesis import HealthCheck, settings

# Helpers with bare asserts: without this a failure would show no values.
for helper in ("properties", "refusal", "reference"):
    pytest.register_assert_rewrite(helper)

# For the test of the rule on skips below (tests/test_project.py).
pytest_plugins = ["pytester"]

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("GRF_FUSION_DATA") or REPOSITORY.parent / "shared" / "data")

# pytest-xdist gives every core a worker already.
torch.set_num_threads(1)

# The same examples at every run on CI, so that a red run can be repeated; new ones elsewhere.
# `examples` in tests/strategies.py takes the share of 100 from the profile.
unchecked = [HealthCheck.too_slow]
if os.environ.get("GRF_FUSION_MUTATION"):
    # mutmut runs the tests again and again in one process, each time on new instances.
    unchecked.append(HealthCheck.differing_executors)
for profile, number in (("third", 34), ("full", 100)):
    settings.register_profile(
        profile,
        max_examples=number,
        deadline=None,
        derandomize=bool(os.environ.get("CI")),
        suppress_health_check=unchecked,
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--full`."""
    parser.addoption(
        "--full", action="store_true", help="try all examples of each property, not a third"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose the number of examples before the tests are imported."""
    settings.load_profile("full" if config.getoption("full") else "third")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start every test from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of real data sets, or skip the test where there is none."""
    if not DATA.is_dir():
        pytest.skip(f"no data at {DATA}: set GRF_FUSION_DATA to the folder of data sets")
    return DATA


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Run what is slow or compiles without coverage: quicker tests reach every line."""
    marked = item.get_closest_marker("slow") or item.get_closest_marker("compile")
    measured = coverage.Coverage.current()
    if not (marked and measured):
        return (yield)
    measured.stop()
    try:
        return (yield)
    finally:
        measured.start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that skips although the data it asks for are there."""
    report = yield
    wants_data = "data_dir" in getattr(item, "fixturenames", ())
    if report.skipped and not hasattr(report, "wasxfail") and wants_data and DATA.is_dir():
        report.outcome = "failed"
        report.longrepr = f"skipped although {DATA} is there: {report.longrepr}"
    return report
