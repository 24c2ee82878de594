"""Sampling options: transformers' own names, checked before a model sees them."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from transformers import GenerationConfig

from glmtune.errors import ConfigError, summarise_faults
from glmtune.models.chatglm import ChatGLMTokenizer
from glmtune.prompts import Template

DEFAULT_MAX_NEW_TOKENS = 512

_MANAGED = {
    "max_length": "use max_new_tokens, which does not count the prompt",
    "num_return_sequences": "a question has one reply",
    "eos_token_id": "the stop tokens are the tokenizer's",
    "pad_token_id": "the padding token is the tokenizer's",
    "bos_token_id": "ChatGLM has no such token",
    "return_dict_in_generate": "replies are returned as text",
    "output_scores": "replies are returned as text",
    "output_logits": "replies are returned as text",
    "output_attentions": "replies are returned as text",
    "output_hidden_states": "replies are returned as text",
    "transformers_version": "it is not an option of generation",
}
_SAMPLING_ONLY = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, float) or _is_whole(value)


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": (lambda value: _is_whole(value) and value >= 1, "a whole number of at least 1"),
    "min_new_tokens": (lambda value: _is_whole(value) and value >= 0, "a whole number of at least 0"),
    "num_beams": (lambda value: _is_whole(value) and value >= 1, "a whole number of at least 1"),
    "no_repeat_ngram_size": (lambda value: _is_whole(value) and value >= 0, "a whole number of at least 0"),
    "top_k": (lambda value: _is_whole(value) and value >= 0, "a whole number of at least 0 (0 is off)"),
    "do_sample": (lambda value: isinstance(value, bool), "true or false"),
    "temperature": (
        lambda value: _is_number(value) and value > 0,
        "a number above 0 (do_sample=false is what temperature 0 stands for)",
    ),
    "top_p": (lambda value: _is_number(value) and 0 < value <= 1, "a number above 0 and at most 1"),
    "min_p": (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "repetition_penalty": (lambda value: _is_number(value) and value > 0, "a number above 0 (1 is none)"),
}


def build_generation_config(
    tokenizer: ChatGLMTokenizer, seq_length: int, options: Mapping[str, Any]
) -> GenerationConfig:
    """Turns sampling options into the configuration that `generate` is called with.

    Args:
        tokenizer: The tokenizer, which knows the stop and padding ids.
        seq_length: The most tokens that the model reads, prompt and reply together.
        options: Fields of transformers' `GenerationConfig` by their own names; None stands for "not given". Without
            any, replies are greedy and at most 512 tokens long.

    Returns:
        The configuration; what it leaves open, the model's own `generation_config` decides.

    Raises:
        ConfigError: A name is unknown or not for the caller to set, or a value is out of range.
    """
    given = {name: value for name, value in options.items() if value is not None}
    defaults = {"max_new_tokens": min(DEFAULT_MAX_NEW_TOKENS, seq_length // 2), "do_sample": False}
    if faults := [*_name_faults(given), *_value_faults(given), *_room_faults(given, seq_length)]:
        raise ConfigError(summarise_faults("options of generation", faults))
    try:
        return GenerationConfig(
            **(defaults | given), eos_token_id=tokenizer.stop_token_ids, pad_token_id=tokenizer.pad_token_id
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"options of generation: {error}") from error


def remembered_prompt(
    tokenizer: ChatGLMTokenizer, template: Template | None, system: str | None
) -> tuple[Template, str | None]:
    """Template and system prompt: those given, else those that the tokenizer remembers.

    `glmtune.load` notes a run's own as `prompt_template` and `system_prompt` among the tokenizer's `init_kwargs`, since
    they belong to how text becomes ids, and so that they are there wherever the tokenizer is.

    Args:
        tokenizer: The tokenizer.
        template: None for the tokenizer's.
        system: None for the tokenizer's, "" for none at all.

    Returns:
        Template and system prompt; `chatglm3` and None where nobody says otherwise.
    """
    own: Template = tokenizer.init_kwargs.get("prompt_template") or "chatglm3"
    return template or own, tokenizer.init_kwargs.get("system_prompt") if system is None else system


def _name_faults(given: Mapping[str, Any]) -> list[str]:
    known = [name for name in vars(GenerationConfig()) if not name.startswith("_") and name not in _MANAGED]
    faults = []
    for name in given:
        if name in _MANAGED:
            faults.append(f"{name}: not an option here; {_MANAGED[name]}")
        elif name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]}?" if nearest else "see the fields of transformers' GenerationConfig"
            faults.append(f"{name}: unknown option of generation; {hint}")
    return faults


def _value_faults(given: Mapping[str, Any]) -> list[str]:
    faults = []
    for name, value in given.items():
        is_valid, expected = _CHECKS.get(name, (lambda _: True, ""))
        if not is_valid(value):
            faults.append(f"{name}: expected {expected}, found {value!r}")
    without_effect = [name for name in _SAMPLING_ONLY if name in given]
    if without_effect and not given.get("do_sample"):
        faults.append(f"{', '.join(without_effect)}: no effect on greedy replies; add do_sample=true or leave it out")
    return faults


def _room_faults(given: Mapping[str, Any], seq_length: int) -> list[str]:
    max_new_tokens = given.get("max_new_tokens", 0)
    if not _is_whole(max_new_tokens) or max_new_tokens < seq_length:
        return []
    return [
        f"max_new_tokens: {max_new_tokens} leaves no room for a prompt; the model reads {seq_length} tokens in all"
        " (seq_length in its config.json)"
    ]
