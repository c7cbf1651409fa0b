"""What every test shares: seeds, threads, the folder of real data and the rule on skips."""

import os
from collections.abc import Generator
from pathlib import Path

# Read by torch when it is imported: a compile inside a worker must not start workers of its own.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# oneDNN keeps code for the last 1,024 shapes of bfloat16, half a gigabyte that is no leak.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
# Read by cuBLAS: without it no sum on a GPU is sure to be the same twice.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

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

# Of the CPU by nature: what computes only there, and what computes nothing. Left out elsewhere,
# as are single tests marked cpu_only.
CPU_ONLY = {
    f"test_{name}.py"
    for name in (
        *("packing", "tiles", "collate", "deploy", "distributed", "soak"),
        *("api", "distribution", "env", "mutation", "project", "publishing", "site", "docs"),
        *("english", "benchmarks", "cost_model"),
        *("quality", "quality_evidence", "quality_rivals"),
    )
}
# Coverage slows tests down by half, and these reach no line that others do not reach.
UNMEASURED = {"test_benchmarks.py", "test_fuzz.py", "test_quality.py"}
# These run nowhere else; they say themselves where each tensor lies.
CUDA_ONLY = {"test_cuda.py"}

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
    """Add `--full` and `--device`."""
    parser.addoption(
        "--full", action="store_true", help="try all examples of each property, not a third"
    )
    parser.addoption(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where tests make their tensors"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose examples and device before the test modules are imported, which make tensors."""
    settings.load_profile("full" if config.getoption("full") else "third")
    if config.getoption("device") == "cpu":
        return
    if not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: this PyTorch sees no CUDA device")
    torch.set_default_device("cuda")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what is left out elsewhere than on the CPU."""
    if config.getoption("device") == "cpu":
        return []
    files = ", ".join(sorted(CPU_ONLY))
    return [
        f"device: {torch.cuda.get_device_name()}",
        f"left out, being of the CPU: tests marked cpu_only and {len(CPU_ONLY)} files: {files}",
    ]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the files of another device, unread: they may need what is not there."""
    elsewhere = CUDA_ONLY if config.getoption("device") == "cpu" else CPU_ONLY
    return collection_path.name in elsewhere or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests of the CPU elsewhere."""
    if config.getoption("device") != "cpu":
        left_out = {item for item in items if item.get_closest_marker("cpu_only")}
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start every test from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def global_state(pytestconfig: pytest.Config) -> Generator[None]:
    """Fail the test that leaves a switch of PyTorch turned, and not those that come after it."""
    yield
    left = {
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device().type,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    device = pytestconfig.getoption("device")
    expected = dict(zip(left, (True, False, torch.float32, device, False), strict=True))
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    assert left == expected, "the test left PyTorch's global state changed"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of real data sets, or skip the test where there is none."""
    if not DATA.is_dir():
        pytest.skip(f"no data at {DATA}: set GRF_FUSION_DATA to the folder of data sets")
    return DATA


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Run without coverage what is slow, compiles or reaches no line that others do not."""
    marked = item.get_closest_marker("slow") or item.get_closest_marker("compile")
    measured = coverage.Coverage.current()
    if not measured or not (marked or item.path.name in UNMEASURED):
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
