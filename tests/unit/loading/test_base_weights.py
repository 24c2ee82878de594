"""Without these, an adapter could be put on a base that it was not trained on, or on one that holds NaN."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmtune.config import embedded_base
from glmtune.errors import ModelError
from glmtune.export.model_folder import save_weights
from glmtune.loading.base_weights import check_finite, fingerprint_base
from glmtune.loading.runs import load

NAME = "transformer.encoder.layers.1.self_attention.query_key_value.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return shutil.copytree(embedded_base(), tmp_path / "base")


def rewrite(base: Path, change: torch.Tensor | float) -> None:
    weights = load_file(base / "model.safetensors")
    weights[NAME] = weights[NAME] * change
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


def test_the_same_weights_in_other_files_are_the_same_base(base: Path) -> None:
    before, weights = fingerprint_base(base), load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    torch.save(weights, base / "pytorch_model.bin")
    assert fingerprint_base(base) == before
    (base / "pytorch_model.bin").unlink()
    save_weights(weights, base, max_shard_bytes=5 * 10**6)
    assert len(list(base.glob("model-*.safetensors"))) > 1
    assert fingerprint_base(base) == before


def test_weights_that_were_trained_further_are_another_base(base: Path) -> None:
    before = fingerprint_base(base)
    rewrite(base, 1.001)
    assert fingerprint_base(base) != before


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_a_base_with_nan_in_it_is_named(base: Path, device_map: str) -> None:
    """Greedy decoding would answer nothing, and say nothing."""
    rewrite(base, float("nan"))
    with pytest.raises(ModelError, match=rf"{base}: {NAME} holds NaN or infinite numbers"):
        load(base, device_map=device_map)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_number_that_is_none_is_found(value: float, dtype: torch.dtype) -> None:
    weight = torch.randn(300, 70).to(dtype)
    check_finite("weight", weight)
    weight[123, 45] = value
    with pytest.raises(ModelError, match="weight holds"):
        check_finite("weight", weight)
