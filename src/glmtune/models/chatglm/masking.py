"""The attention mask: causal, blind to padding, and one that keeps packed samples apart.

Legend of dimension suffixes: B batch, T tokens, S tokens seen with the cache, H hidden size.
"""

# ruff: noqa: N803, N806

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.masking_utils import create_causal_mask

from glmtune.models.chatglm.configuration import ChatGLMConfig


def causal_mask(
    config: ChatGLMConfig,
    hidden_BTH: Tensor,
    attention_mask: Any,
    position_ids: Tensor | None,
    past_key_values: Cache | None,
) -> Any:
    """The causal mask in the form that the attention implementation wants.

    transformers separates packed samples only where there is neither a cache nor a mask. Here they stay separate with
    them too: a token sees keys from its own sample's start on, which lies as far back as its position says.

    Args:
        config: The configuration; its `_attn_implementation` chooses the form.
        hidden_BTH: The embedded tokens; they give sizes, dtype and device.
        attention_mask: 1 where a token is, 0 where padding is, [B, S]; a ready mask, which is returned; or None.
        position_ids: Positions, [B or 1, T], as the caller gave them, or None where they just count on.
        past_key_values: The cache or None.

    Returns:
        What the attention implementation takes for a mask, None where it needs none.

    Raises:
        ValueError: Flash attention is to separate samples in several rows, or next to a mask; it cannot.
    """
    own_sample = None
    has_padding_mask = isinstance(attention_mask, Tensor) and attention_mask.ndim == 2
    if position_ids is not None and (attention_mask is None or has_padding_mask):
        position_ids = position_ids.expand(hidden_BTH.shape[0], -1)
        if position_ids.shape[1] > 1 and _is_packed(position_ids, attention_mask):
            if "flash" in config._attn_implementation and (has_padding_mask or position_ids.shape[0] > 1):
                raise ValueError(
                    "flash attention separates packed samples in a batch of one row without attention_mask only; "
                    'use attn_implementation="sdpa", or give one row and no mask'
                )
            if has_padding_mask or past_key_values is not None:
                num_seen = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
                own_sample = _own_sample(position_ids, num_seen)
    return create_causal_mask(
        config=config,
        inputs_embeds=hidden_BTH,
        attention_mask=attention_mask,
        past_key_values=past_key_values,
        position_ids=position_ids,
        and_mask_function=own_sample,
    )


def _is_packed(position_ids_BT: Tensor, attention_mask_BS: Tensor | None) -> bool:
    """Whether positions restart within a row, among tokens that are no padding."""
    restarts = position_ids_BT.diff() != 1
    if attention_mask_BS is not None:
        is_token = attention_mask_BS[:, -position_ids_BT.shape[1] :].bool()
        restarts = restarts & is_token[:, 1:] & is_token[:, :-1]
    return bool(restarts.any())


def _own_sample(position_ids_BT: Tensor, num_seen: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A mask function, as transformers' masking wants it, under which no query sees keys before its own sample."""
    starts_BT = torch.arange(position_ids_BT.shape[1], device=position_ids_BT.device) + num_seen - position_ids_BT

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key >= starts_BT[batch, query - num_seen]

    return sees
