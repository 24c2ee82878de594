"""Samples must fit into the base's context: rotary positions beyond it were never trained."""

from collections.abc import Iterator

from glmtune.errors import ConfigError


def context_notes(max_length: int | None, longest: int, context: int, *, is_toy: bool) -> Iterator[str]:
    """A note if samples may be longer than the base's context, though none is, or the base is but the built-in toy.

    Args:
        max_length: The length to which samples are shortened, in tokens; None for no limit.
        longest: The longest sample, in tokens.
        context: What the base was trained to read, in tokens.
        is_toy: Whether the base is the built-in one.

    Raises:
        ConfigError: A sample is longer than the context.
    """
    if longest > context and is_toy:
        yield f"the longest sample has {longest} tokens; the built-in toy was trained to read {context}"
    elif longest > context:
        raise ConfigError(
            f"the longest sample has {longest} tokens, but the base was trained to read {context} (seq_length in its "
            f"config.json). Set data.max_length={context} or less, or take a base with a longer context"
        )
    elif max_length is not None and max_length > context:
        yield (
            f"data.max_length={max_length} is more than the {context} tokens that the base was trained to read; no "
            "sample is that long"
        )
