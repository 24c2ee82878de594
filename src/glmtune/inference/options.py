"""Sampling options: transformers' own names, checked before a model sees them."""

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers import GenerationConfig

from glmtune.errors import ConfigError, summarise_faults
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Template

DEFAULT_MAX_NEW_TOKENS = 512

_NOT_FOR_CALLERS = {
    "max_length": "use max_new_tokens, which does not count the prompt",
    "min_length": "use min_new_tokens, which does not count the prompt",
    "num_return_sequences": "a question has one reply",
    "eos_token_id": "the stop tokens are the tokenizer's",
    "pad_token_id": "the padding token is the tokenizer's",
}
_SAMPLING_ONLY = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "seed")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, float) or _is_whole(value)


_Check = tuple[Callable[[Any], bool], str]


def _whole(minimum: int) -> _Check:
    return lambda value: _is_whole(value) and value >= minimum, f"a whole number of at least {minimum}"


_SWITCH: _Check = (lambda value: isinstance(value, bool), "true or false")
_SHARE: _Check = (lambda value: _is_number(value) and 0 < value <= 1, "a number above 0 and at most 1")
_CUTOFF: _Check = (lambda value: _is_number(value) and 0 <= value < 1, "a number of at least 0 and below 1 (0 is off)")

_PENALTY: _Check = (lambda value: _is_number(value) and -2 <= value <= 2, "a number from -2 to 2 (0 has no effect)")

# The supported options. Odd values of others make `generate` fail with obscure errors, or have silent effects.
_OPTIONS: dict[str, _Check] = {
    "max_new_tokens": _whole(1),
    "min_new_tokens": _whole(0),
    "max_time": (lambda value: _is_number(value) and 0 < value < math.inf, "a number of seconds above 0"),
    "do_sample": _SWITCH,
    "temperature": (
        lambda value: _is_number(value) and 0 < value < math.inf,
        "a number above 0 (in place of temperature 0, use do_sample=false)",
    ),
    "top_k": (lambda value: _is_whole(value) and value >= 0, "a whole number of at least 0 (0 is off)"),
    "top_p": _SHARE,
    "min_p": (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "typical_p": _SHARE,
    "epsilon_cutoff": _CUTOFF,
    "eta_cutoff": _CUTOFF,
    "repetition_penalty": (
        lambda value: _is_number(value) and 0 < value < math.inf,
        "a number above 0 (1 has no effect)",
    ),
    "no_repeat_ngram_size": _whole(0),
    "num_beams": _whole(1),
    "length_penalty": (lambda value: _is_number(value) and math.isfinite(value), "a number"),
    "early_stopping": (lambda value: isinstance(value, bool) or value == "never", "true, false or never"),
    "renormalize_logits": _SWITCH,
    "remove_invalid_values": _SWITCH,
    "use_cache": _SWITCH,
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
    "seed": (lambda value: _is_whole(value) and 0 <= value < 2**63, "a whole number from 0 to 2^63 - 1"),
}
# Of these, transformers knows nothing: `generate` would ignore them.
ENGINE_ONLY = ("presence_penalty", "frequency_penalty", "seed")


def check_options(options: Mapping[str, Any]) -> None:
    """Checks what can be told of sampling options without a model.

    Raises:
        ConfigError: A name is unknown or may not be set by the caller, or a value is out of range.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if faults := [*_name_faults(given), *_value_faults(given)]:
        raise ConfigError(summarise_faults("generation options", faults))


def build_generation_config(tokenizer: Tokenizer, seq_length: int, options: Mapping[str, Any]) -> GenerationConfig:
    """Turns sampling options into the configuration that `generate` is called with.

    Args:
        tokenizer: The tokenizer, which has the stop and padding ids.
        seq_length: The model's context length in tokens, prompt and reply together.
        options: Sampling options by the names of transformers' `GenerationConfig`, and `seed`, `presence_penalty` and
            `frequency_penalty`; None means "not given". Without any, replies are greedy and at most 512 tokens long.

    Returns:
        The configuration; what it leaves unset is taken from the model's own `generation_config`. The three options
        that transformers does not know are attributes of it where they are given.

    Raises:
        ConfigError: A name is unknown or may not be set by the caller, or a value is out of range.
    """
    given = {name: value for name, value in options.items() if value is not None}
    defaults = {"max_new_tokens": min(DEFAULT_MAX_NEW_TOKENS, seq_length // 2), "do_sample": False}
    if faults := [*_name_faults(given), *_value_faults(given), *_length_faults(given, seq_length)]:
        raise ConfigError(summarise_faults("generation options", faults))
    # transformers refuses 2 in place of 2.0.
    given |= {name: float(given[name]) for name in ("temperature", "repetition_penalty") if name in given}
    try:
        return GenerationConfig(
            **(defaults | given), eos_token_id=tokenizer.stop_token_ids, pad_token_id=tokenizer.pad_token_id
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"generation options: {error}") from error


def remembered_prompt(
    tokenizer: Tokenizer, template: Template | None, system: str | None
) -> tuple[Template, str | None]:
    """Template and system prompt: those given, otherwise those stored with the tokenizer.

    `glmtune.load` stores a run's own as `prompt_template` and `system_prompt` in the tokenizer's `init_kwargs`: they
    are part of turning text into ids, and are available wherever the tokenizer is.

    Args:
        tokenizer: The tokenizer.
        template: None for the tokenizer's.
        system: None for the tokenizer's, "" for none at all.

    Returns:
        Template and system prompt; by default the family's template and None.
    """
    own: Template = tokenizer.init_kwargs.get("prompt_template") or tokenizer.template
    return template or own, tokenizer.init_kwargs.get("system_prompt") if system is None else system


def _name_faults(given: Mapping[str, Any]) -> list[str]:
    faults = []
    for name in given:
        if name in _NOT_FOR_CALLERS:
            faults.append(f"{name}: not an option here; {_NOT_FOR_CALLERS[name]}")
        elif name not in _OPTIONS:
            nearest = difflib.get_close_matches(name, _OPTIONS, n=1, cutoff=0.6)
            hint = f"did you mean {nearest[0]}?" if nearest else f"the options are {', '.join(_OPTIONS)}"
            faults.append(f"{name}: unknown generation option; {hint}")
    return faults


def _value_faults(given: Mapping[str, Any]) -> list[str]:
    faults = []
    for name, value in given.items():
        is_valid, expected = _OPTIONS.get(name, (lambda _: True, ""))
        if not is_valid(value):
            faults.append(f"{name}: expected {expected}, found {value!r}")
    without_effect = [name for name in _SAMPLING_ONLY if name in given]
    if without_effect and not given.get("do_sample"):
        faults.append(f"{', '.join(without_effect)}: no effect on greedy replies; add do_sample=true or leave it out")
    return faults


def _length_faults(given: Mapping[str, Any], seq_length: int) -> list[str]:
    max_new_tokens = given.get("max_new_tokens", 0)
    if not _is_whole(max_new_tokens) or max_new_tokens < seq_length:
        return []
    return [
        f"max_new_tokens: {max_new_tokens} leaves no room for a prompt; the model reads {seq_length} tokens in all"
        " (seq_length in its config.json)"
    ]
