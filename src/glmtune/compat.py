"""Private APIs of other libraries, which nothing else in the package uses.

Each function says which public API is missing; its canary in tests/unit/compat names the version in which the
private API was last checked, and fails when it is gone or behaves differently. Each function imports what it needs, so
that importing this module costs nothing.

Methods of other libraries' classes that ours override cannot be moved here; their canaries are with the others.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import PretrainedConfig, PreTrainedModel, TrainingArguments

    Tensors = list[Tensor] | tuple[Tensor, ...]


def flash_attention_forward(
    query_QND: "Tensor",
    key_KGD: "Tensor",
    value_KGD: "Tensor",
    cu_query: "Tensor",
    cu_key: "Tensor",
    max_query: int,
    max_key: int,
    scale: float,
) -> tuple["Tensor", "Tensor"]:
    """Causal flash attention within segments, and the log-sum-exp that its backward pass needs.

    Missing: `torch.nn.attention.varlen.varlen_attn` has no backward pass that can be called separately.

    Args:
        query_QND: Queries, [Q, N, D], bfloat16 or float16, on a GPU.
        key_KGD: Keys, [K, G, D].
        value_KGD: Values, [K, G, D].
        cu_query: Cumulative sequence lengths of the queries, [segments + 1] int32.
        cu_key: Cumulative sequence lengths of the keys, likewise.
        max_query: The largest number of queries in a segment.
        max_key: The largest number of keys in a segment.
        scale: Factor for the attention scores.

    Returns:
        The attended values, [Q, N, D], and the log-sum-exp, [N, Q] fp32.
    """
    import torch

    output, log_sum_exp, *_ = torch.ops.aten._flash_attention_forward(
        query_QND, key_KGD, value_KGD, cu_query, cu_key, max_query, max_key, 0.0, True, False, scale=scale
    )
    return output, log_sum_exp


def flash_attention_backward(
    grad_QND: "Tensor",
    query_QND: "Tensor",
    key_KGD: "Tensor",
    value_KGD: "Tensor",
    output_QND: "Tensor",
    log_sum_exp: "Tensor",
    cu_query: "Tensor",
    cu_key: "Tensor",
    max_query: int,
    max_key: int,
    scale: float,
) -> tuple["Tensor", "Tensor", "Tensor"]:
    """The gradients of `flash_attention_forward`.

    Missing: the same.

    Args:
        grad_QND: Gradient of the output, [Q, N, D].
        query_QND: As in the forward pass.
        key_KGD: As in the forward pass.
        value_KGD: As in the forward pass.
        output_QND: The output of the forward pass.
        log_sum_exp: The log-sum-exp that the forward pass returned.
        cu_query: As in the forward pass.
        cu_key: As in the forward pass.
        max_query: As in the forward pass.
        max_key: As in the forward pass.
        scale: As in the forward pass.

    Returns:
        Gradients of queries, keys and values, with their shapes and dtypes.
    """
    import torch

    unused = torch.empty(0, device=grad_QND.device)  # random state for dropout, of which there is none

    query_grad, key_grad, value_grad = torch.ops.aten._flash_attention_backward(
        grad_QND,
        query_QND,
        key_KGD,
        value_KGD,
        output_QND,
        log_sum_exp,
        cu_query,
        cu_key,
        max_query,
        max_key,
        0.0,
        True,
        unused,
        unused,
        scale=scale,
    )
    return query_grad, key_grad, value_grad


def add_to_each(totals: "Tensors", parts: "Tensors") -> None:
    """Adds each tensor of a list to its counterpart in another, in place, in one kernel.

    Missing: a public operation on lists of tensors; torch's own optimisers use this one.
    """
    import torch

    torch._foreach_add_(totals, parts)


def copy_to_each(targets: "Tensors", sources: "Tensors") -> None:
    """Copies each tensor of a list to its counterpart in another, possibly of another dtype, in one kernel.

    Missing: as for `add_to_each`.
    """
    import torch

    torch._foreach_copy_(targets, sources)


def skip_fused_step(optimizer: "torch.optim.Optimizer", is_skipped: "Tensor") -> None:
    """Makes the next step of a fused optimiser a no-op if a flag on the device is set.

    Missing: a way to do that without a GradScaler; this is the attribute that the scaler sets.

    Args:
        optimizer: An optimiser made with `fused=True`.
        is_skipped: A scalar bool on the device of the parameters.
    """
    optimizer.found_inf = is_skipped.float()  # type: ignore[attr-defined]


def put_schedule(scheduler: "LambdaLR", fresh: Mapping[str, Any], step: int, rates: Sequence[float]) -> None:
    """Sets a scheduler to a given step.

    Missing: a setter for what `get_last_lr` returns; `load_state_dict` expects it under a private name.

    Args:
        scheduler: The scheduler.
        fresh: Its state when it was created.
        step: Number of optimiser steps taken.
        rates: The learning rate of each group at that step.
    """
    scheduler.load_state_dict({**fresh, "last_epoch": step, "_last_lr": list(rates)})


def attention_implementation(config: "PretrainedConfig") -> str:
    """The attention implementation that a model is set to, such as sdpa.

    Missing: a getter to go with `set_attn_implementation`.
    """
    return str(config._attn_implementation)


def enable_checkpointing(model: "PreTrainedModel", options: Mapping[str, Any]) -> None:
    """Switches activation checkpointing on for all layers of a model.

    Missing: a name that all supported versions have; newer ones rename the method and warn about its old name.

    Args:
        model: A transformers model.
        options: Keyword arguments of `torch.utils.checkpoint.checkpoint`.
    """
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(dict(options))
    else:
        model.gradient_checkpointing_enable(dict(options))


def generation_defaults() -> Mapping[str, object]:
    """The values of generation options that neither the caller nor the model's own configuration sets.

    Missing: a fresh `GenerationConfig` has None for all of them.
    """
    from transformers import GenerationConfig

    defaults: Mapping[str, object] = GenerationConfig._get_default_generation_params()
    return defaults


def use_one_gpu(arguments: "TrainingArguments") -> None:
    """Keeps the Trainer from putting DataParallel around the model where a process sees several GPUs.

    Missing: a setting for that; `TrainingArguments.n_gpu` is read-only.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)


def trainer_state_globals() -> AbstractContextManager[Any]:
    """A context in which `torch.load(..., weights_only=True)` accepts the random states in a Trainer's checkpoint.

    Missing: documentation; transformers keeps this for internal use.
    """
    from transformers.trainer_pt_utils import safe_globals

    return safe_globals()


def known_trackers() -> list[str]:
    """The names of the experiment trackers that transformers knows, installed or not.

    Missing: the public list of transformers has only those that are installed.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    return list(INTEGRATION_TO_CALLBACK)


def launcher_asks_for(name: str) -> bool:
    """Whether `accelerate launch` has told its processes to use something, such as FSDP or the CPU.

    Missing: a way to ask accelerate before it has initialised the process group.

    Args:
        name: Its name in accelerate's environment variables: CPU, FSDP, DEEPSPEED, MEGATRON_LM or PARALLELISM_CONFIG.
    """
    return os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("true", "1")


def translate_help(translate: Callable[[str], str]) -> None:
    """Translates what typer itself adds to our help, such as the titles of its panels.

    Missing: a setting for these texts, or typer's own translations.

    Args:
        translate: Translates a text into the user's language.
    """
    from typer import rich_utils

    panels = ("ARGUMENTS_PANEL_TITLE", "OPTIONS_PANEL_TITLE", "COMMANDS_PANEL_TITLE")
    for name in (*panels, "DEFAULT_STRING", "REQUIRED_LONG_STRING"):
        setattr(rich_utils, name, translate(getattr(rich_utils, name)))


def wrap_help_anywhere() -> None:
    """Wraps help texts within a run of letters too: Chinese has no spaces, and typer cuts off what does not fit.

    Missing: a setting for it.
    """
    from typer import rich_utils

    make: Any = rich_utils._make_rich_text
    if make.__module__ != rich_utils.__name__:  # done already
        return

    def make_folding(**options: Any) -> Any:
        text = make(**options)
        text.overflow = "fold"
        return text

    rich_utils._make_rich_text = make_folding
