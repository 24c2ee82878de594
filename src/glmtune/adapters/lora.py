"""Attaching a LoRA adapter to a base model, with PEFT and by PEFT's own names."""

import copy
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from glmtune.errors import AdapterError, summarise_faults
from glmtune.models.families import shape_of
from glmtune.models.host_embedding import HostEmbedding

ALL_LINEAR = "all-linear"

# Initialisations that need statistics of the data, which glmtune does not collect.
_DATA_DRIVEN_INITS = ("eva", "corda", "loftq", "lora_ga")
# Initialisations that do not change the base, so that the adapter file is complete.
_ADDITIVE_INITS = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
# Initialisations that change the base deterministically.
_REPEATABLE_INITS = ("pissa", "olora")
# Initialisations whose change to the base can be restored neither from the base nor from the adapter.
_LOST_INITS = {
    "pissa_niter": "by a random decomposition",
    "corda": "by samples of data",
    "lora_ga": "by gradients of data",
    "loftq": "by quantising them on the machine that it was trained on",
}
# Settings that are names of modules, a list of them or one alone.
_NAMES_KEYS = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern")


def attach_lora(
    model: nn.Module, lora: Mapping[str, Any], initial_weights: Mapping[str, Tensor] | None = None
) -> PeftModel:
    """Puts a fresh adapter on a base model and freezes everything else.

    Adapter weights are float32 whatever the base is. `target_modules` may be a list of names, one name, a regular
    expression over full names, or `all-linear`, which leaves the output layer out.

    Args:
        model: The base, a transformers model. It is changed in place.
        lora: Arguments of `peft.LoraConfig`.
        initial_weights: For pissa and olora, the result of `initial_adapter_weights` when the run began: a resumed run
            starts from the same split of the base, rather than from another decomposition of it.

    Returns:
        The model with the adapter, named `default`.

    Raises:
        AdapterError: A target matches nothing, PEFT refuses a setting, or nothing would be trained; all faults in one
            message.
    """
    config = make_lora_config(model, lora)
    init = config.init_lora_weights
    if initial_weights:
        config.init_lora_weights = False
    peft_model = put_on(model, config)
    if initial_weights:
        _take_out_of_base(peft_model, initial_weights)
        peft_model.peft_config["default"].init_lora_weights = init
    trained = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    if not trained:
        raise AdapterError("lora: with these settings no parameter is trained; leave out lora.inference_mode")
    for parameter in trained:
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    return peft_model


def make_lora_config(model: nn.Module, lora: Mapping[str, Any]) -> LoraConfig:
    """Makes the `LoraConfig` for a model, its targets checked against the model's modules.

    Args:
        model: The base that the adapter is for.
        lora: Arguments of `peft.LoraConfig`.

    Returns:
        The configuration, `all-linear` spelt out.

    Raises:
        AdapterError: As for `attach_lora`.
    """
    settings = {"task_type": "CAUSAL_LM", "inference_mode": False, **copy.deepcopy(dict(lora))}
    targets = settings["target_modules"] = spell_out(model, settings.get("target_modules"))
    saved = settings.get("modules_to_save") or []
    if isinstance(saved, str) or not isinstance(saved, Iterable):
        raise AdapterError(f"lora.modules_to_save: expected a list of names; found {saved!r}")
    saved = [str(name) for name in saved]
    faults = [
        *_unmatched(model, "target_modules", targets),
        *_unmatched(model, "modules_to_save", saved),
        *_layer_faults(model, settings.get("layers_to_transform")),
    ]
    faults = faults or _host_faults(model, [targets, saved])
    init = str(settings.get("init_lora_weights", True)).lower()
    if init in _DATA_DRIVEN_INITS:
        faults.append(f"lora.init_lora_weights: {init} needs data before training; use true, gaussian, pissa or olora")
    if str(settings["task_type"]).rpartition(".")[2] != "CAUSAL_LM":
        faults.append(f"lora.task_type: expected CAUSAL_LM; found {settings['task_type']}. Leave it out")
    if faults:
        raise AdapterError(summarise_faults("the adapter does not fit the model", faults))
    try:
        config = LoraConfig(**settings)
    except (ValueError, TypeError) as error:
        raise AdapterError(f"lora: PEFT refuses these settings: {error}") from error
    return config


def put_on(model: nn.Module, config: LoraConfig) -> PeftModel:
    """PEFT's `get_peft_model`, its refusals as an AdapterError; the adapter notes where its base lies."""
    name_or_path = model.__dict__.get("name_or_path")
    config.base_model_name_or_path = name_or_path  # avoids PEFT's warning about a base that has moved
    try:
        with quiet_peft():
            peft_model: PeftModel = get_peft_model(model, config)
    except (ValueError, TypeError, AttributeError, IndexError, NotImplementedError) as error:
        if re.match(r"Target module .* is not supported", str(error), re.DOTALL):  # and the module, with all inside it
            raise AdapterError(_unadaptable(model, config.target_modules)) from error
        raise AdapterError(f"PEFT cannot attach this adapter: {error}") from error
    config.base_model_name_or_path = _lasting_path(name_or_path)
    return peft_model


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hides warnings of PEFT that do not concern the user, or that we give in our own words."""
    with warnings.catch_warnings():
        # PEFT reads gradient checkpointing under a name that transformers deprecates.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        # Of an adapter with biases; a line of ours says what follows from it.
        warnings.filterwarnings("ignore", message="Careful, disabling adapter layers with bias")
        yield


def initial_adapter_weights(model: PeftModel) -> dict[str, Tensor]:
    """The weights that pissa and olora have subtracted from the base; needed to save an adapter for the original base.

    Args:
        model: A model straight from `attach_lora`, on its final device or not.

    Returns:
        Copies on the CPU of each layer's `lora_A` [r, in] and `lora_B` [out, r] under their names in an adapter file;
        empty for initialisations that leave the base alone.
    """
    if not changes_base(model.peft_config["default"].init_lora_weights):
        return {}
    return {
        name.replace(".default.", "."): parameter.detach().cpu().clone()
        for name, parameter in model.named_parameters()
        if re.search(r"\.lora_[AB]\.default\.weight$", name)
    }


def init_for_loading(init_lora_weights: Any) -> bool | str:
    """The initialisation to put a saved adapter on its base with, before its weights are filled in.

    Stock PEFT runs the adapter's initialisation again. What that makes of the adapter is overwritten; what it makes of
    the base stays, and after pissa and olora the adapter fits no other. So does this, where the base comes out as it
    was in training.

    Args:
        init_lora_weights: The value in the adapter's configuration.

    Raises:
        AdapterError: It changed the base in a way that cannot be repeated, or is not known.
    """
    name = str(init_lora_weights).lower()
    if name in _ADDITIVE_INITS:
        return True
    if name in _REPEATABLE_INITS:
        return str(init_lora_weights)
    for lost, how in _LOST_INITS.items():
        if name.startswith(lost):
            plain = (
                "save it as plain LoRA, with model.save_pretrained(FOLDER, path_initial_model_for_weight_conversion="
                "INITIAL), where INITIAL is the adapter as saved before training, or "
            )
            raise AdapterError(
                f"init_lora_weights={init_lora_weights!r} changed the base's weights {how}, and the adapter's files do "
                f"not say how. Where it was trained, {'' if lost == 'loftq' else plain}merge it, with "
                "model.merge_and_unload().save_pretrained(FOLDER)"
            )
    raise AdapterError(
        f"init_lora_weights={init_lora_weights!r} is not known, nor what it did to the base. Was the adapter written "
        "by a newer PEFT? Then update peft and glmtune"
    )


def comparable_setting(lora: Mapping[str, Any], key: str) -> Any:
    """A setting of an adapter, or PEFT's default for it, in one form for all that mean the same.

    Names are a sorted list, one name alone a list of one. An initialisation that leaves the base alone is True: the
    adapter's weights are known.

    Args:
        lora: Arguments of `peft.LoraConfig`.
        key: The name of one of them.
    """
    value = lora[key] if key in lora else vars(LoraConfig()).get(key)
    if key == "init_lora_weights":
        return True if str(value).lower() in _ADDITIVE_INITS else value
    if key in _NAMES_KEYS and isinstance(value, str) and re.fullmatch(r"\w+", value):
        return [value]
    if isinstance(value, list | tuple | set) and all(isinstance(each, str) for each in value):
        return sorted(value) or None
    return value


def changes_base(init_lora_weights: Any) -> bool:
    """Whether an initialisation moves part of the base's weights into the adapter."""
    return str(init_lora_weights).lower().startswith(("pissa", "olora"))


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """The number of trained parameters, and of all, quantised ones by their original number."""
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    counts: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            counts[id(parameter)] = parameter.numel()
        if isinstance(module, nn.Linear):  # in 4 bits, two weights are one number
            counts[id(module.weight)] = module.in_features * module.out_features
        if isinstance(module, HostEmbedding):
            counts[id(module.weight)] = module.weight.numel()
    return num_trained, sum(counts.values())


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The adapted layers of a model by their full names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def spell_out(model: nn.Module, targets: Any) -> str | list[str]:
    """Targets as PEFT takes them: a list of names, or a regular expression over full names."""
    if targets == ALL_LINEAR:
        return _linear_names(model)
    if isinstance(targets, str):
        # PEFT reads every string as a regular expression, and a bare name would match nothing.
        return [targets] if re.fullmatch(r"[\w.]+", targets) else targets
    if isinstance(targets, Iterable):
        return sorted(str(target) for target in targets)
    raise AdapterError(f"lora.target_modules: expected names, a regular expression or {ALL_LINEAR}; found {targets!r}")


def _linear_names(model: nn.Module) -> list[str]:
    """Last names of all linear layers but the output layer."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    linears = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and part is not head]
    return sorted({name.rpartition(".")[2] for name in linears})


def _matches(name: str, targets: str | list[str]) -> bool:
    """Whether targets, a regular expression or names, mean a module; as PEFT has it."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _host_faults(model: nn.Module, wanted: Iterable[str | list[str]]) -> list[str]:
    """A fault for an embedding that is to be trained, but has no parameters here."""
    on_host = [name for name, module in model.named_modules() if isinstance(module, HostEmbedding)]
    return [
        f"lora: {name.rpartition('.')[2]} stays in the host's memory and cannot be trained there; leave out "
        "model.offload_embedding"
        for name in on_host
        if any(_matches(name, targets) for targets in wanted)
    ]


def _unmatched(model: nn.Module, key: str, targets: str | list[str]) -> list[str]:
    """A fault for each target that names no module."""
    names = [name for name, _ in model.named_modules()]
    there_are = f"the linear layers are {', '.join(_linear_names(model))}"
    if isinstance(targets, str):
        try:
            matches = any(_matches(name, targets) for name in names)
        except re.error as error:
            return [f"lora.{key}: {targets!r} is not a regular expression: {error}"]
        unmatched = [] if matches else [targets]
    else:
        unmatched = [target for target in targets if not any(_matches(name, [target]) for name in names)]
    return [f"lora.{key}: {target!r} matches nothing in the model; {there_are}" for target in unmatched]


def _unadaptable(model: nn.Module, targets: Any) -> str:
    """The fault of targets that mean modules which LoRA cannot adapt."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    plain = targets if isinstance(targets, str) else [str(target) for target in targets or ()]
    kinds = {
        type(part).__name__
        for name, part in base.named_modules()
        if name and _matches(name, plain) and not isinstance(part, nn.Linear | nn.Embedding | LoraLayer)
    }
    return (
        f"lora.target_modules: {targets if isinstance(targets, str) else plain!r} matches modules that LoRA cannot "
        f"adapt ({', '.join(sorted(kinds))}); the linear layers are {', '.join(_linear_names(base))}"
    )


def _layer_faults(model: nn.Module, layers: Any) -> list[str]:
    """A fault for each layer index that the model does not have."""
    if layers is None:
        return []
    config: Any = model.config
    num_layers = shape_of(config).num_layers
    return [
        f"lora.layers_to_transform: there is no layer {layer}; the model has layers 0 to {num_layers - 1}"
        for layer in (layers if isinstance(layers, Iterable) else [layers])
        if layer not in range(num_layers)
    ]


def _lasting_path(name_or_path: str | None) -> str | None:
    """A base's folder as an absolute path, so that the adapter finds it from any directory; a hub id as it is."""
    return str(Path(name_or_path).resolve()) if name_or_path and Path(name_or_path).is_dir() else name_or_path or None


def _take_out_of_base(model: PeftModel, initial_weights: Mapping[str, Tensor]) -> None:
    """Subtracts given initial weights from the base, as pissa and olora do with their own: W -> W - scaling * B @ A.

    Source: `LoraLayer.pissa_init` of PEFT, in the same order of operations, so that the result is the same to the bit.
    """
    for name, layer in lora_layers(model).items():
        lora_a, lora_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        with torch.no_grad():
            lora_a.data = initial_weights[f"{name}.lora_A.weight"].to(lora_a.device)
            lora_b.data = initial_weights[f"{name}.lora_B.weight"].to(lora_b.device)
            base = layer.get_base_layer().weight
            rest = base.data.float() - layer.scaling["default"] * lora_b.data @ lora_a.data
            base.data = rest.to(base.dtype)
