"""The attention mask: causal, without padding, and block-diagonal over packed samples.

Legend of dimension suffixes: B batch, T tokens, S tokens including the cache, H hidden size.
"""

# ruff: noqa: N803, N806

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.masking_utils import create_causal_mask

from glmtune.compat import attention_implementation
from glmtune.models.chatglm.configuration import ChatGLMConfig


def causal_mask(
    config: ChatGLMConfig,
    hidden_BTH: Tensor,
    attention_mask: Any,
    position_ids: Tensor | None,
    past_key_values: Cache | None,
) -> Any:
    """The causal mask in the form that the attention implementation takes.

    transformers separates packed samples only without a cache and a mask. Here they are separated with them too: a
    token attends to keys from the start of its own sample, which its position id locates.

    Args:
        config: The configuration; its attention implementation determines the form.
        hidden_BTH: The embedded tokens; only their sizes, dtype and device are used.
        attention_mask: 1 for tokens, 0 for padding, [B, S]; a complete mask, which is returned as it is; or None.
        position_ids: Positions, [B or 1, T], as the caller gave them, or None if they are consecutive.
        past_key_values: The cache or None.

    Returns:
        The mask for the attention implementation; None if it needs none.

    Raises:
        ValueError: Flash attention would have to separate samples in several rows, with a mask, or with a filled cache,
            which it cannot. Or positions restart at a value other than 0, as an attention mask passed by mistake does.
    """
    own_sample = None
    if position_ids is not None and (attention_mask is None or _is_padding_mask(attention_mask)):
        position_ids = position_ids.expand(hidden_BTH.shape[0], -1)
        own_sample = _own_sample(config, position_ids, attention_mask, past_key_values)
    return create_causal_mask(
        config=config,
        inputs_embeds=hidden_BTH,
        attention_mask=attention_mask,
        past_key_values=past_key_values,
        position_ids=position_ids,
        and_mask_function=own_sample,
    )


def _is_padding_mask(attention_mask: Any) -> bool:
    return isinstance(attention_mask, Tensor) and attention_mask.ndim == 2


def _own_sample(
    config: ChatGLMConfig, position_ids_BT: Tensor, attention_mask_BS: Tensor | None, past_key_values: Cache | None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None:
    """A mask function for transformers' masking under which no query attends to keys before its own sample.

    None if there is nothing to separate, or if transformers separates the samples itself.
    """
    if attention_mask_BS is not None and not _restarts_among_tokens(position_ids_BT, attention_mask_BS):
        return None
    num_rows, num_tokens = position_ids_BT.shape
    num_seen = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
    starts_BT = torch.arange(num_tokens, device=position_ids_BT.device) + num_seen - position_ids_BT
    if attention_mask_BS is None:
        if not (starts_BT > 0).any():
            return None
        _refuse_other_than_samples(position_ids_BT)
    if "flash" in attention_implementation(config) and (attention_mask_BS is not None or num_seen or num_rows > 1):
        raise ValueError(
            "flash attention can separate packed samples only in a single row, without attention_mask and "
            'with an empty cache; use attn_implementation="sdpa", or pass one whole row and no mask'
        )
    if attention_mask_BS is None and past_key_values is None:
        return None

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key >= starts_BT[batch, query - num_seen]

    return sees


def _restarts_among_tokens(position_ids_BT: Tensor, attention_mask_BS: Tensor) -> bool:
    """Whether positions restart within a row, between two tokens that are not padding.

    Padding shifts the positions after it, so the computed starts are not conclusive here. For a single token, as in
    each decoding step of `generate`, the answer is known without waiting for the device.
    """
    if position_ids_BT.shape[1] == 1:
        return False
    is_token = attention_mask_BS[:, -position_ids_BT.shape[1] :].bool()
    return bool(((position_ids_BT.diff() != 1) & is_token[:, 1:] & is_token[:, :-1]).any())


def _refuse_other_than_samples(position_ids_BT: Tensor) -> None:
    """Refuses position ids that restart elsewhere than at 0, as an attention mask in their place does."""
    restarts_BT = position_ids_BT.diff() <= 0
    wrong = position_ids_BT[:, 1:][restarts_BT & (position_ids_BT[:, 1:] != 0)]
    if wrong.numel():
        raise ValueError(
            f"position_ids restart at {int(wrong[0])} within a row, expected 0, where the next sample of a packed row "
            "begins. If they are an attention mask, pass it by name: attention_mask=..."
        )
