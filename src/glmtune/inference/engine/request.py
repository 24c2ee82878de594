"""What the engine is asked, and how far it has come with it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from glmtune.errors import ModelError

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and when a reply ends; the names are transformers', where it has the option.

    Attributes:
        max_new_tokens: The most tokens of the reply.
        do_sample: Whether tokens are drawn; otherwise the likeliest is taken, and what only drawing needs is ignored.
        temperature: What the logits are divided by.
        top_k: Only the k likeliest tokens are drawn from; 0 for all.
        top_p: Only the likeliest tokens that have this share of the probability together.
        min_p: Only tokens that have this share of the likeliest one's probability; None for all.
        repetition_penalty: Makes tokens of prompt and reply less likely; 1 for none.
        presence_penalty: Subtracted once from the logit of each token that occurs in the reply.
        frequency_penalty: Subtracted from a token's logit once for each time it occurs in the reply.
        seed: The same seed gives the same reply, whatever else is in the batch; None for a random one.
        min_new_tokens: Tokens before which none of `stop_token_ids` is chosen.
        stop_token_ids: The ids that end a reply.
        num_logprobs: For how many of the likeliest tokens log-probabilities are given, besides the chosen one's; None
            for none at all.
    """

    max_new_tokens: int
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    min_new_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    num_logprobs: int | None = None

    def numbered(self, number: int) -> "Sampling":
        """The same for one of several replies: with a seed, each draws for itself, and the first as it would alone.

        Args:
            number: The reply's number, from 0.
        """
        return self if self.seed is None else replace(self, seed=(self.seed + number) % 2**63)

    @property
    def has_penalty(self) -> bool:
        """Whether the choice depends on the tokens before it."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @cached_property
    def is_plain(self) -> bool:
        """Whether the likeliest token is taken, and nothing else is asked for."""
        return not (self.do_sample or self.has_penalty or self.min_new_tokens) and self.num_logprobs is None


@dataclass(frozen=True)
class Request:
    """A prompt to be continued.

    Attributes:
        prompt_ids: Token ids, at least one.
        sampling: How to go on.
        adapter: The name of a loaded adapter; None for the base alone.
        stop_texts: Texts before which the reply ends.
    """

    prompt_ids: Sequence[int]
    sampling: Sampling
    adapter: str | None = None
    stop_texts: tuple[str, ...] = ()


@dataclass(eq=False)
class RunningRequest:
    """A request that the engine has taken.

    Attributes:
        request: As submitted.
        sampling: Its options, with a seed if it draws.
        adapter: The index of its adapter.
        names: From `block_names`; names of the reply's blocks are added as they fill.
        token_ids: The prompt, and what has been generated.
        blocks: Its blocks, enough for its longest reply; empty while it waits, and once it is finished.
        num_computed: The tokens whose keys and values are in the cache.
        row: Its row among those that decode; -1 before and after.
        finish_reason: Why it ended; None while it has not.
        error: What went wrong, where the reason is `error`.
    """

    request: Request
    sampling: Sampling
    adapter: int
    names: list[bytes]
    token_ids: list[int]
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    row: int = -1
    finish_reason: FinishReason | None = None
    error: ModelError | None = None

    @cached_property
    def num_prompt(self) -> int:
        """The tokens of the prompt."""
        return len(self.request.prompt_ids)

    @property
    def generated_ids(self) -> list[int]:
        """The reply so far, with the id that ended it."""
        return self.token_ids[self.num_prompt :]

    @cached_property
    def max_length(self) -> int:
        """The most tokens of prompt and reply together."""
        return self.num_prompt + self.sampling.max_new_tokens
