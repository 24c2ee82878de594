"""Without this, a GPU that others have filled could end a run in a traceback before it is planned."""

from typing import Any

import pytest
import torch

from glmtune.planning import device as device_module
from glmtune.planning.device import KnownDevice


def test_a_gpu_that_is_too_full_to_be_looked_at_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(device_module, "free_device_bytes", fail)
    assert KnownDevice.measure(torch.device("cuda", 0), torch.bfloat16, 1).free_bytes == 0
