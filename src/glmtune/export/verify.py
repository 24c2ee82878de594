"""Compares a merged model with its base and adapter, as plain transformers and stock PEFT load them.

Logits are computed in float32, a layer at a time, whatever dtype the weights are stored in, so that they differ only in
the rounding of the merged weights. In 16 bits that may be more than a weak adapter changes; therefore the weights are
compared too, where nothing but the rounding itself is allowed.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from glmtune.adapters.lora import changes_base, quiet_peft
from glmtune.errors import AdapterError
from glmtune.models.families import family_of
from glmtune.models.tokenizer import Tokenizer
from glmtune.models.weight_files import read_weight
from glmtune.prompts import Conversation, Message, render_prompt

_PROBES = ("你是谁？", "请用一句话介绍你自己。", "Hello! What can you do for me?")
_FLOAT32_TOLERANCE = 1e-4
# Rounding moves a weight by about 0.4 units, and the largest of millions of normally distributed errors lies 5 to 6
# standard deviations out; the rest is margin for errors that add up rather than average out.
_ROUNDING_MARGIN = 4.0
# How exactly float32 gives what an adapter adds to a weight, relative to the largest value of it. pissa and olora
# decompose the base each time that they are loaded, and then round it.
_PRODUCT_NOISE = 1e-5
_DECOMPOSITION_NOISE = 1e-2
_ROWS_AT_ONCE = 1024  # of a weight that is compared in float32


def probe_prompts(tokenizer: Tokenizer) -> list[list[int]]:
    """Fixed prompts, as token ids."""
    return [render_prompt(Conversation((Message("user", probe),)), tokenizer, tokenizer.template) for probe in _PROBES]


@torch.inference_mode()
def probe_logits(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits of each prompt, float32 [T, V], computed in float32."""
    with _computing_in_float32(model):
        return [model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0].float() for prompt in prompts]


def load_stock(
    base_path: str, adapter_path: Path, dtype: torch.dtype | str, prompts: Sequence[Sequence[int]]
) -> tuple[PeftModel, list[Tensor], float]:
    """Base and adapter as plain transformers and stock PEFT load them, and their logits.

    This does not use the package's own code for reading adapters, so that a bug there cannot go unnoticed.

    Args:
        base_path: The base: a folder or a hub id.
        adapter_path: The adapter's folder.
        dtype: The dtype that the base is held in.
        prompts: From `probe_prompts`.

    Returns:
        The model, logits of each prompt, and the largest change that the adapter makes to those of the base.
    """
    base = AutoModelForCausalLM.from_pretrained(base_path, dtype=dtype, device_map="cpu").eval()
    without_adapter = probe_logits(base, prompts)
    with quiet_peft():
        model = PeftModel.from_pretrained(base, str(adapter_path)).eval()
    with_adapter = probe_logits(model, prompts)
    return model, with_adapter, largest_difference(with_adapter, without_adapter)


def largest_difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The largest absolute difference of tensors; NaN if any value is NaN, which `max` would hide."""
    return float(torch.stack([(one - other).abs().max() for one, other in zip(first, second, strict=True)]).max())


@torch.inference_mode()
def compare_weights(folder: Path, stock: PeftModel, dtype: torch.dtype) -> None:
    """Compares a merged folder's weights, one at a time, with those that stock PEFT merges in float32.

    Each must be the exact weight, rounded once. An adapter that was left out is noticed however weak it is, unless
    rounding leaves nothing of it.

    Args:
        folder: The merged model.
        stock: From `load_stock`. It is merged in place.
        dtype: The dtype that the base was held in, to which modules that are trained as a whole were rounded first.

    Raises:
        AdapterError: A weight is missing, or another one.
    """
    is_decomposed = changes_base(stock.peft_config["default"].init_lora_weights)
    noise = _DECOMPOSITION_NOISE if is_decomposed else _PRODUCT_NOISE
    compared = set()
    for name, layer in stock.get_base_model().named_modules():
        if isinstance(layer, BaseTunerLayer):
            inner = layer.get_base_layer()
            before = {key: parameter.clone() for key, parameter in inner.named_parameters()}
            inner.float()
            layer.merge()
            for key, exact in inner.named_parameters():
                added = largest_difference(exact.split(_ROWS_AT_ONCE), before[key].split(_ROWS_AT_ONCE))
                _compare_weight(folder, f"{name}.{key}", exact, noise * added)
                exact.data = exact.data.to(before[key].dtype)  # only one layer at a time is in float32
                compared.add(f"{name}.{key}")
    for name, exact in stock.base_model.unload().named_parameters():
        if name not in compared:
            _compare_weight(folder, name, exact.to(dtype), 0.0)


def _compare_weight(folder: Path, name: str, exact: Tensor, noise: float) -> None:
    """Compares one weight of a folder with the exact one, which is off by at most `noise` and one float32 rounding."""
    found = read_weight(folder, name)
    is_same = found is not None and found.shape == exact.shape
    if found is not None and is_same:
        for found_rows, exact_rows in zip(found.split(_ROWS_AT_ONCE), exact.split(_ROWS_AT_ONCE), strict=True):
            rows = exact_rows.float()
            slack = noise + torch.finfo(torch.float32).eps * rows.abs()
            least, most = (rows - slack).to(found.dtype), (rows + slack).to(found.dtype)
            is_same = is_same and bool(((least <= found_rows) & (found_rows <= most)).all())
    if not is_same:
        raise AdapterError(
            f"the merged model does not compute what base and adapter compute: {name} is not the base's weight with "
            "the adapter's added, rounded once. Nothing was kept. Please report this with the run's adapter_config.json"
        )


def compare_folder(
    folder: Path, prompts: Sequence[Sequence[int]], expected: Sequence[Tensor], num_rounded: int
) -> tuple[float, float]:
    """Loads a merged folder with plain transformers and compares its logits.

    The tolerance is 1e-4 in float32. A 16-bit weight is off by up to half its dtype's epsilon, independently of the
    others; over n weight matrices such errors add up to a relative error of the logits of about sqrt(n) times that.

    Args:
        folder: The merged model.
        prompts: From `probe_prompts`.
        expected: From `load_stock`.
        num_rounded: How many weight matrices were rounded to 16 bits.

    Returns:
        The largest difference, and the tolerance.

    Raises:
        AdapterError: The difference is larger than the tolerance, or NaN.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="cpu").eval()
    found = probe_logits(model, prompts)
    scale = max(1.0, float(torch.cat(list(expected)).square().mean().sqrt()))
    tolerance = _FLOAT32_TOLERANCE * scale
    if model.dtype != torch.float32:
        tolerance += _ROUNDING_MARGIN * torch.finfo(model.dtype).eps / 2 * math.sqrt(num_rounded) * scale
    difference = largest_difference(found, expected)
    if not difference <= tolerance:  # also true of NaN
        raise AdapterError(
            "the merged model does not compute what base and adapter compute: logits differ by "
            f"{difference:.3g}, at most {tolerance:.3g} is allowed. Nothing was kept. Please report this with "
            "the run's adapter_config.json"
        )
    return difference, tolerance


@contextmanager
def _computing_in_float32(model: nn.Module) -> Iterator[None]:
    """Casts the weights of each layer to float32 while it runs, and restores the stored ones afterwards."""
    stored: dict[nn.Parameter, Tensor] = {}

    def widen(module: nn.Module, _: object) -> None:
        for parameter in module.parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                stored[parameter] = parameter.data
                parameter.data = parameter.data.float()

    def restore(module: nn.Module, _: object, __: object) -> None:
        for parameter in module.parameters():
            if parameter in stored:
                parameter.data = stored.pop(parameter)

    layers = _layers(model)
    handles = [layer.register_forward_pre_hook(widen) for layer in layers]
    handles += [layer.register_forward_hook(restore) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, data in stored.items():
            parameter.data = data


def _layers(model: nn.Module) -> list[nn.Module]:
    """The parts that are widened as a whole: transformer blocks, and the modules outside that own weights."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    blocks: list[nn.Module] = [parts.layer for parts in family_of(base).layers(base)]
    inside = {part for block in blocks for part in block.modules()}
    return blocks + [m for m in model.modules() if m not in inside and any(True for _ in m.parameters(recurse=False))]
