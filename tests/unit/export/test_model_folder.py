"""Without these, merged weights could be written twice, or into files of another size than was asked for."""

import pytest
import torch
from safetensors.torch import load_file

from glmtune.errors import ConfigError
from glmtune.export.model_folder import parse_size, save_weights


@pytest.mark.parametrize(
    ("size", "expected"),
    [("5GB", 5 * 10**9), ("500 mb", 5 * 10**8), ("1.5KB", 1500), ("12", 12), (12, 12), ("2G", 2e9)],
)
def test_weight_files_get_the_size_that_was_asked_for_however_it_is_written(size, expected):
    assert parse_size(size) == expected


@pytest.mark.parametrize("size", ["", "GB", "-1GB", "0", "5XB", "5GiB", -3, True])
def test_bad_sizes(size):
    with pytest.raises(ConfigError, match="expected a size"):
        parse_size(size)


def test_weights_that_share_memory_are_written_once(tmp_path):
    weight = torch.ones(3, 2)
    assert save_weights({"embedding": weight, "head": weight, "other": weight.clone().T}, tmp_path, 10**6) == 48
    assert set(load_file(tmp_path / "model.safetensors")) == {"embedding", "other"}
