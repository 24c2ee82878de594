"""The training loop: full-parameter, AdamW, batches of samples of like length."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from tiny_base.corpus import Samples

CONTEXT_WEIGHT = 0.1
"""Weight in the loss of tokens that are not the assistant's; its own weigh 1."""
LENGTH_STEP = 8


@dataclass(frozen=True)
class Recipe:
    """How much to train.

    Attributes:
        num_conversations: Conversations of the corpus.
        num_epochs: Passes over them.
        batch_tokens: Most tokens in a batch, padding included.
        learning_rate: Peak; it warms up and then falls linearly to zero.
    """

    num_conversations: int
    num_epochs: int
    batch_tokens: int
    learning_rate: float


RECIPES = {
    "cuda": Recipe(num_conversations=500_000, num_epochs=4, batch_tokens=16_384, learning_rate=2e-3),
    "cpu": Recipe(num_conversations=120_000, num_epochs=1, batch_tokens=4_096, learning_rate=2e-3),
}
"""The shipped base is made on a GPU; the CPU's recipe makes a weaker one in about an hour on two cores."""


def batches(samples: Samples, batch_tokens: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over the samples, in batches of like length, in an order set by the seed.

    Yields:
        Token ids [B, T], int64, padded with 0 on the right, and the loss weight of each token, [B, T], fp32.
    """
    rng = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(samples.lengths)[:-1]])
    buckets = -(-samples.lengths // LENGTH_STEP)
    order = np.lexsort((rng.random(len(buckets)), buckets))
    groups: list[np.ndarray] = []
    for bucket in np.unique(buckets):
        rows = order[buckets[order] == bucket]
        size = max(1, batch_tokens // int(bucket * LENGTH_STEP))
        groups += [rows[i : i + size] for i in range(0, len(rows), size)]
    for index in rng.permutation(len(groups)):
        rows = groups[index]
        width = int(samples.lengths[rows].max())
        positions = np.arange(width)
        is_token = positions < samples.lengths[rows, None]
        source = np.where(is_token, starts[rows, None] + positions, 0)
        ids = np.where(is_token, samples.ids[source], 0).astype(np.int64)
        weights = np.where(samples.mask[source], 1.0, CONTEXT_WEIGHT) * is_token
        yield torch.from_numpy(ids), torch.from_numpy(weights.astype(np.float32))


def losses(model: ChatGLMForConditionalGeneration, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted loss to train on, and the plain mean over supervised tokens to look at; fp32 scalars."""
    logits = model(ids, use_cache=False).logits[:, :-1].float()
    per_token = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weight = weights[:, 1:].flatten()
    supervised = weight == 1.0
    return (per_token * weight).sum() / weight.sum(), per_token[supervised].mean()


def new_model(config: ChatGLMConfig, seed: int) -> ChatGLMForConditionalGeneration:
    """A model with fresh fp32 weights."""
    torch.manual_seed(seed)
    return ChatGLMForConditionalGeneration(config)


def train(model: ChatGLMForConditionalGeneration, samples: Samples, recipe: Recipe, device: str, seed: int) -> None:
    """Trains in place and prints progress."""
    model.to(device).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
        fused=device == "cuda",
    )
    num_steps = recipe.num_epochs * sum(1 for _ in batches(samples, recipe.batch_tokens, seed))
    warmup = max(1, num_steps // 50)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, max(0.0, (num_steps - step) / (num_steps - warmup)))
    )
    step, started = 0, time.monotonic()
    for epoch in range(recipe.num_epochs):
        for ids, weights in batches(samples, recipe.batch_tokens, seed + epoch):
            with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
                loss, supervised = losses(model, ids.to(device), weights.to(device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if step % max(1, num_steps // 40) == 0 or step == num_steps:
                if not math.isfinite(value := supervised.item()):
                    raise FloatingPointError(f"the loss at step {step} is {value}")
                print(f"step {step}/{num_steps}  loss {value:.4f}  {time.monotonic() - started:.0f} s", flush=True)


@torch.no_grad()
def evaluate(model: ChatGLMForConditionalGeneration, samples: Samples, batch_tokens: int, device: str) -> float:
    """The mean loss of all supervised tokens."""
    model.eval()
    total, num_tokens = 0.0, 0
    for ids, weights in batches(samples, batch_tokens, seed=0):
        num_supervised = int((weights[:, 1:] == 1.0).sum())
        total += num_supervised * losses(model, ids.to(device), weights.to(device))[1].item()
        num_tokens += num_supervised
    return total / num_tokens
