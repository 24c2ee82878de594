"""Numbers to try ops with."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # for segment_twin

from segment_twin import Random


@pytest.fixture
def random() -> Random:
    """Standard normal numbers in float64."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
