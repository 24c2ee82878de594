"""Fixtures that several test modules share."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test must never reach for a model hub
os.environ["GLMTUNE_LANG"] = "en"  # whoever runs them

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden cases and real data that lies beside a developer's checkout."""
    if not SHARED.is_dir():
        pytest.skip("needs the golden cases, which are not part of the repository")
    return SHARED


@pytest.fixture(scope="session", params=["chatglm3-tiny", "chatglm2-tiny"])
def golden(request: pytest.FixtureRequest, shared: Path) -> Path:
    """Each golden folder in turn: a tiny random model with what the official implementation computes on it."""
    return shared / "golden" / request.param
