"""The official forward once more: naive, sequence-first, in plain torch, from a configuration and a state dict.

It shares no code with the package and is written the way the official model thinks: tokens are the first dimension,
heads are repeated before attention, keys of padding get minus infinity, loops where loops are clearer. Slow on purpose.

Source: `modeling_chatglm.py` of the official ChatGLM3-6B release.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, silu


def official_logits(
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> Tensor:
    """Logits, [batch, tokens, vocabulary], of token ids, [batch, tokens]."""
    batch_size, num_tokens = input_ids.shape
    if position_ids is None:
        position_ids = torch.arange(num_tokens).repeat(batch_size, 1)
    hidden = weights["transformer.embedding.word_embeddings.weight"][input_ids].transpose(0, 1)
    if config["fp32_residual_connection"]:
        hidden = hidden.float()
    forbidden = _forbidden(num_tokens, batch_size, attention_mask)
    angles = _angles(config, position_ids)
    for number in range(config["num_layers"]):
        prefix = f"transformer.encoder.layers.{number}."
        layer = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        hidden = _block(config, layer, hidden, angles, forbidden)
    if config["post_layer_norm"]:
        hidden = _norm(config, weights, "transformer.encoder.final_layernorm", hidden)
    return linear(hidden, weights["transformer.output_layer.weight"]).transpose(0, 1)


def _forbidden(num_tokens: int, batch_size: int, attention_mask: Tensor | None) -> Tensor:
    """[batch, 1, query, key]: True where a query must not look."""
    allowed = torch.ones(batch_size, num_tokens, num_tokens).tril()
    if attention_mask is not None:
        allowed = allowed * attention_mask[:, None, :]
        allowed = allowed - attention_mask[:, :, None] + 1  # a padding query sees everything, lest its softmax be NaN
    return (allowed < 0.5)[:, None]


def _angles(config: Mapping[str, Any], position_ids: Tensor) -> Tensor:
    """[tokens, batch, pairs]: by how much each pair of channels turns."""
    num_rotated = config["kv_channels"] // 2
    base = 10000 * config["rope_ratio"]
    theta = 1.0 / (base ** (torch.arange(0, num_rotated, 2).float() / num_rotated))
    return torch.stack([torch.outer(row.float(), theta) for row in position_ids], dim=1)


def _block(config: Mapping[str, Any], layer: Mapping[str, Tensor], hidden: Tensor, angles: Tensor, forbidden: Tensor):
    normed = _norm(config, layer, "input_layernorm", hidden)
    residual = normed if config["apply_residual_connection_post_layernorm"] else hidden
    hidden = residual + _attention(config, layer, normed, angles, forbidden)
    normed = _norm(config, layer, "post_attention_layernorm", hidden)
    residual = normed if config["apply_residual_connection_post_layernorm"] else hidden
    wide = linear(normed, layer["mlp.dense_h_to_4h.weight"], layer.get("mlp.dense_h_to_4h.bias"))
    gate, up = wide.chunk(2, dim=-1)
    return residual + linear(silu(gate) * up, layer["mlp.dense_4h_to_h.weight"], layer.get("mlp.dense_4h_to_h.bias"))


def _norm(config: Mapping[str, Any], weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    scale, eps = weights[f"{name}.weight"], config["layernorm_epsilon"]
    if config["rmsnorm"]:
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * scale
    return layer_norm(x, scale.shape, scale, weights[f"{name}.bias"], eps)


def _attention(
    config: Mapping[str, Any], layer: Mapping[str, Tensor], x: Tensor, angles: Tensor, forbidden: Tensor
) -> Tensor:
    mixed = linear(x, layer["self_attention.query_key_value.weight"], layer.get("self_attention.query_key_value.bias"))
    heads = [_head(config, mixed, number) for number in range(config["num_attention_heads"])]
    contexts = []
    for query, key, value in heads:  # each [tokens, batch, head size]
        query, key = _turn(query, angles), _turn(key, angles)
        scores = torch.einsum("qbd,kbd->bqk", query, key) / math.sqrt(config["kv_channels"])
        weights = scores.masked_fill(forbidden[:, 0], float("-inf")).softmax(dim=-1)
        contexts.append(torch.einsum("bqk,kbd->qbd", weights, value))
    context = torch.cat(contexts, dim=-1)
    return linear(context, layer["self_attention.dense.weight"], layer.get("self_attention.dense.bias"))


def _head(config: Mapping[str, Any], mixed: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of one query head, cut out of the fused projection by their channel numbers."""
    size, num_heads = config["kv_channels"], config["num_attention_heads"]
    if not config["multi_query_attention"]:
        start = number * 3 * size
        return tuple(mixed[..., start + part * size : start + (part + 1) * size] for part in range(3))
    num_groups = config["multi_query_group_num"]
    group = number // (num_heads // num_groups)
    firsts = (number, num_heads + group, num_heads + num_groups + group)
    return tuple(mixed[..., first * size : (first + 1) * size] for first in firsts)


def _turn(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates pairs (0, 1), (2, 3) ... of the first half of the channels, as complex numbers."""
    num_rotated = 2 * angles.shape[-1]
    pairs = torch.complex(x[..., 0:num_rotated:2], x[..., 1:num_rotated:2])
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    return torch.cat((turned, x[..., num_rotated:]), dim=-1)
