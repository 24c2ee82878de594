"""Without this, tests could come to be skipped by the hundred, and CI call it a success."""

import os
import sys
from pathlib import Path

import pytest

import processes

TESTS = Path(__file__).parents[1]
SKIPPED = """
import pytest

@pytest.mark.skip(reason="needs a CUDA GPU")
def test_on_a_gpu(): ...

@pytest.mark.skip(reason="needs a browser: the page is looked at")
def test_in_a_browser(): ...

@pytest.mark.skip(reason="fails at times")
def test_that_somebody_gave_up(): ...

def test_that_wants_a_package(): pytest.importorskip("no_such_package")

@pytest.mark.xfail(reason="not done yet", strict=True)
def test_that_is_to_come(): raise AssertionError
"""


@pytest.mark.parametrize(
    ("is_strict", "outcome"),
    [("0", "5 skipped, 1 xfailed"), ("1", "1 failed, 2 skipped, 1 xfailed, 2 errors")],
)
def test_whatever_is_skipped_but_for_a_gpu_or_a_browser_fails_in_ci(
    tmp_path: Path, is_strict: str, outcome: str
) -> None:
    (tmp_path / "conftest.py").write_bytes((TESTS / "conftest.py").read_bytes())
    (tmp_path / "test_some.py").write_text(SKIPPED)
    (tmp_path / "test_none.py").write_text('import pytest\npytest.skip("not here", allow_module_level=True)\n')
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "GLMTUNE_STRICT": is_strict}
    command = [sys.executable, "-m", "pytest", "--rootdir", tmp_path, "--continue-on-collection-errors", tmp_path]
    printed = processes.run(*command, env=environment).stdout
    assert outcome in printed, printed
