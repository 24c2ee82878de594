"""The weights of a run's merged model, one at a time, so that memory never holds more than a layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from glmtune.adapters.adapter_files import read_adapter_config, read_adapter_weights
from glmtune.adapters.lora import changes_base, lora_layers, put_on
from glmtune.errors import AdapterError
from glmtune.loading.base_weights import check_finite
from glmtune.models.families import family_of
from glmtune.models.weight_files import locate_weights, read_weight_of

_PREFIX = "base_model.model."  # of names in an adapter's file
_MERGE_FIRST = "Merge the run first, with `glmtune merge RUN --output FOLDER`, and export that folder"


@dataclass(frozen=True)
class LoraPart:
    """What an adapter adds to one weight.

    Attributes:
        down: `lora_A`, [r, in].
        up: `lora_B`, [out, r].
        scaling: The factor of their product, by PEFT: of rsLoRA and of rank and alpha patterns too.
        magnitude: DoRA's magnitudes, [out]; None for plain LoRA.
    """

    down: Tensor
    up: Tensor
    scaling: float
    magnitude: Tensor | None

    def merged(self, weight: Tensor) -> Tensor:
        """A base weight with the adapter's part, computed in float32."""
        merged = weight.float().addmm(self.up.float(), self.down.float(), alpha=self.scaling)
        if self.magnitude is not None:
            merged *= (self.magnitude.float() / torch.linalg.norm(merged, dim=1))[:, None]
        return merged


def read_lora_parts(adapter_path: Path, config: Any) -> tuple[dict[str, LoraPart], LoraConfig]:
    """Reads what an adapter adds to each weight.

    Args:
        adapter_path: The adapter's folder.
        config: The base's configuration.

    Returns:
        The parts, by the full names of the weights, and the adapter's configuration.

    Raises:
        AdapterError: The adapter is damaged, does not fit the base, or is more than LoRA on linear layers.
    """
    lora = read_adapter_config(adapter_path)
    if changes_base(lora.init_lora_weights):
        raise AdapterError(
            f"{adapter_path}: {lora.init_lora_weights} moved part of the base into the adapter. {_MERGE_FIRST}"
        )
    if lora.modules_to_save or lora.bias != "none" or lora.trainable_token_indices:
        raise AdapterError(f"{adapter_path}: besides LoRA, other weights were trained. {_MERGE_FIRST}")
    with torch.device("meta"):
        model = family_of(config).model_class(config)
        peft_model = put_on(model, lora)
    weights = read_adapter_weights(peft_model, adapter_path)
    parts = {}
    for name, layer in lora_layers(peft_model).items():
        if not isinstance(layer.get_base_layer(), nn.Linear):
            raise AdapterError(f"{adapter_path}: {name} is not a linear layer. {_MERGE_FIRST}")
        parts[f"{name.removeprefix(_PREFIX)}.weight"] = LoraPart(
            weights.pop(f"{name}.lora_A.weight"),
            weights.pop(f"{name}.lora_B.weight"),
            float(layer.scaling["default"]),
            weights.pop(f"{name}.lora_magnitude_vector", None),
        )
    if weights:
        raise AdapterError(f"{adapter_path}: {next(iter(weights))} is more than plain LoRA. {_MERGE_FIRST}")
    return parts, lora


class MergedWeights:
    """The weights of a base, with an adapter merged into each as it is read.

    Args:
        folder: The base's checked folder.
        config: Its configuration.
        parts: What the adapter adds, from `read_lora_parts`; empty for a base alone.

    Attributes:
        shapes: The shape of each weight, in the order in which reading is fastest.
    """

    def __init__(self, folder: Path, config: Any, parts: Mapping[str, LoraPart]) -> None:
        family = family_of(config)
        self._files = locate_weights(folder, family.buffers)
        self._parts = parts
        with torch.device("meta"):
            expected = family.model_class(config).state_dict()
        self.shapes = {name: tuple(expected[name].shape) for name in self._files}

    def read(self, name: str) -> Tensor:
        """One weight: in the file's dtype if the adapter leaves it alone, else in float32.

        Raises:
            ModelError: It holds NaN or infinite numbers.
        """
        weight = read_weight_of(self._files[name], name)
        check_finite(name, weight)
        return self._parts[name].merged(weight) if name in self._parts else weight
