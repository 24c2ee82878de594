"""transformers' `GenerationConfig` as the engine's `Sampling`."""

from dataclasses import fields
from typing import Any

from transformers import GenerationConfig

from glmtune.compat import generation_defaults
from glmtune.inference.engine.request import Sampling

_OWN = frozenset(field.name for field in fields(Sampling))
# What is settled otherwise: stop and padding ids are the tokenizer's, and max_new_tokens takes the place of max_length.
_SETTLED = frozenset(("max_length", "eos_token_id", "pad_token_id", "bos_token_id", "transformers_version"))
_DRAWING_ONLY = frozenset(("top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"))


def why_not_options(generation: GenerationConfig, own: GenerationConfig | None) -> str | None:
    """The first option that the engine does not have, as a phrase; None if it has all.

    Args:
        generation: From `build_generation_config`.
        own: The model's, which applies where `generation` says nothing.
    """
    resolved, defaults = _resolved(generation, own), generation_defaults()
    without_effect = _SETTLED if resolved["do_sample"] else _SETTLED | _DRAWING_ONLY
    for name, value in resolved.items():
        if name in _OWN or name in without_effect or name.startswith("_"):
            continue
        default = defaults.get(name)
        # What has no default is off, and models' own configurations may say so.
        if value is not None and value != (False if default is None else default):
            return f"it does not have the option {name}={value}"
    return None


def sampling_of(generation: GenerationConfig, own: GenerationConfig | None) -> Sampling:
    """The options of a configuration about which `why_not_options` says nothing.

    Args:
        generation: As for `why_not_options`, as is `own`.
    """
    given = {name: value for name, value in _resolved(generation, own).items() if name in _OWN and value is not None}
    return Sampling(**given, stop_token_ids=tuple(generation.eos_token_id))


def _resolved(generation: GenerationConfig, own: GenerationConfig | None) -> dict[str, Any]:
    """Each option's value, in transformers' order of precedence: what is given, the model's own, the default."""
    names = {*vars(GenerationConfig()), *(_OWN & vars(generation).keys())}
    sources = [vars(generation), {} if own is None else vars(own), generation_defaults()]
    return {
        name: next((source[name] for source in sources if source.get(name) is not None), None) for name in sorted(names)
    }
