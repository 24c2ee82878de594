"""Where the replies in a file came from: a record beside it, so that those of two adapters never mix in one file."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from glmtune.errors import ConfigError, DataError, show_text
from glmtune.files import read_json_object, storage_faults, write_json

_NUM_COMPARED = 2048  # values from the middle of each weight of the base; training changes nearly all of a weight


def origin_of(
    model: PreTrainedModel | PeftModel, template: str, system: str | None, asking: Mapping[str, Any]
) -> dict[str, Any]:
    """Describes what replies are made with.

    Args:
        model: The model, bare or within PEFT.
        template: The prompt template.
        system: The system prompt of questions without one.
        asking: Whatever else the replies depend on, by name: sampling options, and how questions are read.

    Returns:
        Values that are the same as long as the replies come from the same place. The base's weights are recognised as
        they are in memory, so another dtype or format is another base.
    """
    adapter: dict[str, Tensor] = {}
    base: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        if isinstance(weight, Tensor) and not weight.is_meta:  # accelerate leaves nothing else of what is on the disk
            is_adapters = isinstance(model, PeftModel) and ("lora_" in name or ".modules_to_save." in name)
            weights = adapter if is_adapters else base
            weights[name.replace(".base_layer.", ".").removeprefix("base_model.model.")] = weight
    active = list(model.active_adapters) if isinstance(model, PeftModel) else []
    return {
        "adapter": f"{_digest(adapter.items())} {' '.join(active)}",
        "base": _digest((name, _piece(weight)) for name, weight in base.items()),
        "template": template,
        "system": system or "",
        "options": {name: value for name, value in sorted(asking.items()) if value is not None},
    }


def check_origin(output: Path, origin: Mapping[str, Any]) -> None:
    """Checks that the replies in a file were made in the same way as those that are to follow.

    Args:
        output: The file, which holds replies. Nothing is known of one without a record, such as one that was moved.
        origin: From `origin_of`.

    Raises:
        ConfigError: They were made with something else; says with what.
        DataError: The record is damaged.
    """
    file = _record(output)
    if not file.is_file():
        return
    before = read_json_object(file, DataError)
    faults = []
    if before.get("adapter") != origin["adapter"]:
        faults.append("another adapter")
    if before.get("base") != origin["base"]:
        faults.append("another base, or the same in another dtype or format")
    for name in ("template", "system"):
        if before.get(name) != origin[name]:
            faults.append(f"{name} {before.get(name)!r}, not {origin[name]!r}")
    old, new = before.get("options"), origin["options"]
    old = old if isinstance(old, dict) else {}
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            faults.append(f"{name}={_say(old, name)}, not {_say(new, name)}")
    if faults:
        raise ConfigError(
            f"{show_text(str(output))}: the replies in it were made with {'; '.join(faults)}. Choose another --output, "
            "or add --overwrite to replace them"
        )


def write_origin(output: Path, origin: Mapping[str, Any]) -> None:
    """Notes beside a file what its replies are made with.

    Raises:
        StorageError: The note cannot be written.
    """
    with storage_faults(show_text(str(output))):
        write_json(_record(output), origin)


def _record(output: Path) -> Path:
    output = output.resolve()
    return output.with_name(f".{output.name}.origin.json")


def _say(options: Mapping[str, Any], name: str) -> str:
    return repr(options[name]) if name in options else "default"


def _piece(weight: Tensor) -> Tensor:
    return weight.detach().flatten()[weight.numel() // 2 :][:_NUM_COMPARED]


def _digest(weights: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(weights, key=lambda named: named[0]):
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
