"""Fixtures that several test modules share, and what may be left out where."""

import gc
import os
import re
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from golden.trim import DATA, MODELS, expand

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test must never reach for a model hub
os.environ["GLMTUNE_LANG"] = "en"  # whoever runs them

# Programs inherit what is ignored, as in a script's background job or under nohup; tests press Ctrl-C all the same.
for number in signal.Signals:
    if number.name in ("SIGINT", "SIGHUP") and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)

ALLOWED_SKIP = re.compile(r"needs a ([\w ]+ )?(GPU|browser)\b")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skipped test fails where GLMTUNE_STRICT=1 is set, as in CI, unless it needs a GPU or a browser."""
    return _strictly((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for modules that are skipped as a whole."""
    return _strictly((yield))


def _strictly(report: Any) -> Any:
    if os.environ.get("GLMTUNE_STRICT") == "1" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not ALLOWED_SKIP.search(reason):
            report.outcome = "failed"
            report.longrepr = f"{reason}\nOnly tests that need a GPU or a browser may be skipped (GLMTUNE_STRICT=1)."
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is marked as for POSIX systems on others."""
    if os.name == "posix":
        return
    left_out = [item for item in items if item.get_closest_marker("posix")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    """From here on, garbage is not looked for in what has been imported: Trainer has it collected in every run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def golden_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the golden folders, as bases of the official layout."""
    folder = tmp_path_factory.mktemp("golden")
    for name in MODELS:
        expand(DATA / name, folder / name)
    return folder


@pytest.fixture(scope="session", params=MODELS)
def golden(request: pytest.FixtureRequest, golden_folders: Path) -> Path:
    """Each golden folder in turn: a tiny random model with what the official implementation computes on it."""
    return golden_folders / request.param


@pytest.fixture(scope="session")
def tiny_base(golden_folders: Path) -> Path:
    """A base folder of the official layout for whoever wants one that is small. Tests must not change it."""
    return golden_folders / "chatglm3-tiny"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the tutorial's data set and files of the published model, which are not ours to give away."""
    folder = Path(os.environ.get("GLMTUNE_REAL_DATA", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.fail(f"{folder}: no such folder; name the one with the real data in GLMTUNE_REAL_DATA")
    return folder
