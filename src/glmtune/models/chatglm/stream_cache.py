"""The cache that `stream_chat` hands from one question to the next."""

from collections.abc import Sequence
from typing import Any

from transformers import DynamicCache, PretrainedConfig


class StreamCache:
    """Keys and values of a conversation so far, with the token ids that they belong to.

    The next prompt holds the whole conversation again. Only the part that both begin with is kept, so a reply is the
    same with a cache as without one.

    Args:
        config: The model's configuration.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        self.cache = DynamicCache(config=config)
        self._token_ids: list[int] = []

    def keep_prefix_of(self, prompt: Sequence[int]) -> None:
        """Drops what a prompt does not begin with; at least the prompt's last token remains to be read."""
        num_stored = self.cache.get_seq_length()
        most = min(len(prompt) - 1, len(self._token_ids), num_stored)
        num_kept = next((n for n in range(most) if prompt[n] != self._token_ids[n]), most)
        if num_kept < num_stored:
            self.cache.crop(num_kept - num_stored)
        self._token_ids = list(prompt)

    def append(self, token_id: int) -> None:
        """Records a new token of the reply."""
        self._token_ids.append(token_id)


def open_cache(past_key_values: Any, has_history: bool, config: PretrainedConfig) -> StreamCache:
    """The cache of the conversation so far, or a new one.

    Args:
        past_key_values: What the last question yielded; None for a new conversation.
        has_history: Whether the history of the conversation is given too.
        config: The model's configuration.

    Raises:
        ValueError: `past_key_values` comes from elsewhere, or without its history.
    """
    if past_key_values is None:
        return StreamCache(config)
    if not isinstance(past_key_values, StreamCache):
        raise ValueError(
            f"past_key_values is a {type(past_key_values).__name__}; stream_chat takes only what it has yielded itself "
            "with return_past_key_values=True, or None"
        )
    if not has_history:
        raise ValueError("past_key_values is given without its history; pass both, or neither for a new conversation")
    return past_key_values
