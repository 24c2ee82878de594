"""The private parts of other libraries that are used here, and nowhere else in the package.

Each function says which public thing is missing; its canary in tests/unit/compat names the version that the
private part was last seen on, and fails when it is gone or does something else. Whatever a function needs is imported
within it, so that importing this module takes nothing.

Methods of other libraries' classes that ours override cannot be moved here; their canaries stand beside the others.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import PretrainedConfig, TrainingArguments

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
    """Causal flash attention within segments, and the log-sum-exp that its backward pass wants.

    Missing: `torch.nn.attention.varlen.varlen_attn` has no backward pass to be called apart.

    Args:
        query_QND: Queries, [Q, N, D], bfloat16 or float16, on a GPU.
        key_KGD: Keys, [K, G, D].
        value_KGD: Values, likewise.
        cu_query: Where each segment's queries begin, and where the last one ends, [segments + 1] int32.
        cu_key: As `cu_query`, for keys.
        max_query: The most queries that a segment has.
        max_key: The most keys.
        scale: What scores are multiplied by.

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

    Missing: as there.

    Args:
        grad_QND: Gradient of the output, [Q, N, D].
        query_QND: As in the forward pass, and so all that have its names.
        key_KGD: See there.
        value_KGD: See there.
        output_QND: What it returned.
        log_sum_exp: What it returned beside.
        cu_query: See there.
        cu_key: See there.
        max_query: See there.
        max_key: See there.
        scale: See there.

    Returns:
        Gradients of queries, keys and values, in their shapes and dtypes.
    """
    import torch

    unused = torch.empty(0, device=grad_QND.device)  # the state of a dropout that there is not

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
    """Adds to each of many tensors its part, in one kernel.

    Missing: a public operation on lists of tensors; torch's own optimisers use this one.
    """
    import torch

    torch._foreach_add_(totals, parts)


def copy_to_each(targets: "Tensors", sources: "Tensors") -> None:
    """Copies many tensors, each into another, perhaps of another dtype, in one kernel.

    Missing: as for `add_to_each`.
    """
    import torch

    torch._foreach_copy_(targets, sources)


def skip_fused_step(optimizer: "torch.optim.Optimizer", is_skipped: "Tensor") -> None:
    """Makes the next step of a fused optimiser change nothing, where a flag on the device says so.

    Missing: a way to tell a fused optimiser that without a GradScaler; this is the field that the scaler sets.

    Args:
        optimizer: An optimiser made with `fused=True`.
        is_skipped: A bool, a scalar on the device of its parameters.
    """
    optimizer.found_inf = is_skipped.float()  # type: ignore[attr-defined]


def put_schedule(scheduler: "LambdaLR", fresh: Mapping[str, Any], step: int, rates: Sequence[float]) -> None:
    """Puts a scheduler to a step.

    Missing: a setter for what `get_last_lr` returns; `load_state_dict` takes it under a private name.

    Args:
        scheduler: The scheduler.
        fresh: Its state as it was made.
        step: Optimiser steps taken.
        rates: The learning rate of each group at that step.
    """
    scheduler.load_state_dict({**fresh, "last_epoch": step, "_last_lr": list(rates)})


def attention_implementation(config: "PretrainedConfig") -> str:
    """Which attention a model has been told to use, such as sdpa.

    Missing: a getter beside `set_attn_implementation`.
    """
    return str(config._attn_implementation)


def use_one_gpu(arguments: "TrainingArguments") -> None:
    """Keeps the Trainer from putting DataParallel around the model where a process sees several GPUs.

    Missing: a setting for that; `TrainingArguments.n_gpu` can only be read.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)


def trainer_state_globals() -> AbstractContextManager[Any]:
    """Within it, `torch.load(..., weights_only=True)` takes what Trainer puts into a checkpoint's random states.

    Missing: documentation; transformers has it for itself.
    """
    from transformers.trainer_pt_utils import safe_globals

    return safe_globals()


def known_trackers() -> list[str]:
    """The names of the experiment trackers that transformers knows, installed or not.

    Missing: transformers has a public list of those installed only.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    return list(INTEGRATION_TO_CALLBACK)


def launcher_asks_for(name: str) -> bool:
    """Whether `accelerate launch` has told its processes to use something, such as FSDP or the CPU.

    Missing: a question to accelerate that it answers before it has joined the processes.

    Args:
        name: What accelerate calls it in its environment: CPU, FSDP, DEEPSPEED, MEGATRON_LM or PARALLELISM_CONFIG.
    """
    return os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("true", "1")


def translate_help(translate: Callable[[str], str]) -> None:
    """Translates what typer itself prints around our help, such as the titles of its panels.

    Missing: a setting for these texts, or typer's own translations.

    Args:
        translate: Gives a text in the reader's language.
    """
    from typer import rich_utils

    panels = ("ARGUMENTS_PANEL_TITLE", "OPTIONS_PANEL_TITLE", "COMMANDS_PANEL_TITLE")
    for name in (*panels, "DEFAULT_STRING", "REQUIRED_LONG_STRING"):
        setattr(rich_utils, name, translate(getattr(rich_utils, name)))
