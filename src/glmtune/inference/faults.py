"""Errors that more than one way of generating has."""

from glmtune.errors import ModelError

_NAN_LOGITS = (
    "the model computes NaN instead of logits: numbers grew too large for its dtype, or its weights are damaged. Try "
    "--dtype bfloat16 or float32; if that does not help, another checkpoint or base"
)


def nan_logits() -> ModelError:
    """The model computes NaN, of which the argmax would be token 0."""
    return ModelError(_NAN_LOGITS)


def out_of_memory(num_new_tokens: int, num_prompts: int, num_prompt_tokens: int) -> ModelError:
    """Memory ran out.

    Args:
        num_new_tokens: The most new tokens of a reply.
        num_prompts: Prompts that were being answered at once.
        num_prompt_tokens: The most tokens of one of them.
    """
    return ModelError(
        f"out of memory while generating {num_new_tokens} new tokens for {num_prompts} prompt(s)"
        f" of up to {num_prompt_tokens}; lower max_new_tokens or shorten the prompts"
    )
