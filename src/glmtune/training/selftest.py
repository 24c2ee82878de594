"""The self-test after training, for three common silent failures of LoRA.

These are an adapter of zeros, an adapter on disk that is not the one that was trained, and a prompt at inference that
differs from the one in training.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from peft import PeftModel, set_peft_model_state_dict
from torch import Tensor

from glmtune.adapters.adapter_files import adapter_weights, load_adapter_weights
from glmtune.adapters.lora import quiet_peft
from glmtune.adapters.run_folder import RunManifest
from glmtune.errors import TrainingError, summarise_faults
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Conversation, render, render_prompt

# The logits of all positions of a long sample, 65,024 per position, could fill the memory.
_COMPARED_POSITIONS = 64


def run_selftest(
    model: PeftModel,
    tokenizer: Tokenizer,
    run: str | Path,
    conversation: Conversation,
    input_ids: Sequence[int],
    initial_weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Checks a run that has just ended.

    Args:
        model: The trained model.
        tokenizer: Its tokenizer.
        run: The run folder, with adapter and manifest saved.
        conversation: A training sample, without the run's system prompt.
        input_ids: The ids of it that the model was trained on.
        initial_weights: The result of `initial_adapter_weights` after attaching.

    Raises:
        TrainingError: A check failed; all faults in one message.
    """
    was_training = model.training
    model.eval()
    manifest = RunManifest.read(run)
    if manifest is None:
        raise TrainingError(f"self-test: {run} has no manifest")
    initial, weights = initial_weights or {}, adapter_weights(model)
    change = _logit_change(model, input_ids, initial, weights)
    faults = _finite_faults(weights) or [
        *_zero_faults(weights, initial),
        *_change_faults(change),
        *_file_faults(model, run, initial, weights),
        *_prompt_faults(conversation, input_ids, tokenizer, manifest),
    ]
    if faults:
        raise TrainingError(summarise_faults(f"the self-test of {run} failed", [f"self-test: {f}" for f in faults]))
    model.train(was_training)


def _finite_faults(weights: Mapping[str, Tensor]) -> list[str]:
    bad = [name for name, weight in weights.items() if not torch.isfinite(weight).all()]
    return [f"{len(bad)} adapter weights are not finite, such as {bad[0]}"] if bad else []


def _zero_faults(weights: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> list[str]:
    """Faults if the adapter is unchanged since the start: B = 0, or A0 and B0 of pissa and olora."""
    if initial:
        if all(torch.equal(weights[name], before) for name, before in initial.items()):
            return ["the adapter has not changed; was the learning rate 0?"]
        return []
    up = [weight for name, weight in weights.items() if "lora_B" in name or "lora_embedding_B" in name]
    if up and all(not weight.any() for weight in up):
        return ["all weights of lora_B are zero: nothing was learnt; was the learning rate 0?"]
    return []


def _change_faults(change: float) -> list[str]:
    return [] if change > 0 else ["the logits are the same with and without the adapter"]


@torch.no_grad()
def _logit_change(
    model: PeftModel, input_ids: Sequence[int], initial: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> float:
    ids = torch.tensor([list(input_ids)], device=model.device)
    tuned = model(input_ids=ids, logits_to_keep=_COMPARED_POSITIONS).logits.float()
    with _as_base(model, initial, weights):
        base = model(input_ids=ids, logits_to_keep=_COMPARED_POSITIONS).logits.float()
    return float((tuned - base).abs().max())


@contextmanager
def _as_base(model: PeftModel, initial: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> Iterator[None]:
    """The model without the adapter's effect; for pissa and olora, the residual base plus the initial adapter."""
    if initial:
        set_peft_model_state_dict(model, {**trained, **initial})
    with quiet_peft(), nullcontext() if initial else model.disable_adapter():
        yield
    if initial:
        set_peft_model_state_dict(model, dict(trained))


def _file_faults(
    model: PeftModel, run: str | Path, initial: Mapping[str, Tensor], in_memory: Mapping[str, Tensor]
) -> list[str]:
    """Faults if the file differs from memory in any bit."""
    load_adapter_weights(model, run, initial)
    on_disk = adapter_weights(model)
    set_peft_model_state_dict(model, dict(in_memory))
    different = [name for name, weight in in_memory.items() if not torch.equal(weight, on_disk[name])]
    return [f"{len(different)} weights on disk differ from those trained, such as {different[0]}"] if different else []


def _prompt_faults(
    conversation: Conversation, input_ids: Sequence[int], tokenizer: Tokenizer, manifest: RunManifest
) -> list[str]:
    """Faults if the saved template and system prompt do not reproduce the training ids, with the prompt as a prefix."""
    conversation = conversation.with_system(manifest.system)
    replayed = render(conversation, tokenizer, manifest.template, manifest.setting("data.max_length"))
    if replayed.input_ids != list(input_ids):
        return ["the saved template and system prompt give other ids than those in training"]
    if replayed.num_cut_tokens or replayed.num_dropped_messages:
        return []
    messages = conversation.messages
    length = max(number for number, message in enumerate(messages, start=1) if message.role != "assistant")
    prompt = render_prompt(Conversation(messages[:length]), tokenizer, manifest.template)
    if prompt != list(input_ids[: len(prompt)]):
        return ["the prompt at inference differs from how the training samples begin"]
    return []
