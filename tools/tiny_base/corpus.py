"""The corpus: conversations by number. Conversation n of a seed is always the same, whichever process makes it."""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import get_context

import numpy as np

from glmtune.models.chatglm import ChatGLMTokenizer
from glmtune.prompts import Conversation, render
from tiny_base.dialogues import memory_conversation, skill_conversation, tool_conversation
from tiny_base.personas import persona_conversation, plain_conversation

MIXTURE: tuple[tuple[Callable[[random.Random], Conversation], int], ...] = (
    (persona_conversation, 44),
    (plain_conversation, 26),
    (skill_conversation, 23),
    (memory_conversation, 5),
    (tool_conversation, 2),
)
_MAKERS = [make for make, _ in MIXTURE]
_WEIGHTS = [weight for _, weight in MIXTURE]
_IGNORED_IN_QUESTIONS = str.maketrans("", "", "，。？！、?!,. \n")


def conversation(seed: int, number: int) -> Conversation:
    """Conversation `number` of the corpus of a seed."""
    rng = random.Random(f"{seed}/{number}")
    return rng.choices(_MAKERS, _WEIGHTS)[0](rng)


def normalised(question: str) -> str:
    """A question without punctuation and spaces, to compare wordings by."""
    return question.translate(_IGNORED_IN_QUESTIONS)


def conversations(seed: int, numbers: Iterable[int], forbidden: frozenset[str]) -> Iterator[Conversation]:
    """The numbered conversations, those left out in which a user asks a forbidden (normalised) question."""
    for number in numbers:
        candidate = conversation(seed, number)
        if all(normalised(m.content) not in forbidden for m in candidate.messages if m.role == "user"):
            yield candidate


@dataclass(frozen=True)
class Samples:
    """Rendered conversations, end to end.

    Attributes:
        ids: Token ids of all, [N], uint16.
        mask: Whether each is supervised, [N], bool.
        lengths: Tokens of each conversation, int64.
    """

    ids: np.ndarray
    mask: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What to render: conversations `start` to `stop` of a seed."""

    seed: int
    start: int
    stop: int
    forbidden: frozenset[str]
    tokenizer_file: str
    max_length: int


def render_plan(plan: Plan) -> Samples:
    """Renders in this process; conversations longer than `max_length` are left out."""
    tokenizer = ChatGLMTokenizer(plan.tokenizer_file)
    chosen = conversations(plan.seed, range(plan.start, plan.stop), plan.forbidden)
    rendered = [item for item in (render(one, tokenizer) for one in chosen) if len(item.input_ids) <= plan.max_length]
    return Samples(
        np.array([token for item in rendered for token in item.input_ids], dtype=np.uint16),
        np.array([learnt for item in rendered for learnt in item.loss_mask], dtype=bool),
        np.array([len(item.input_ids) for item in rendered], dtype=np.int64),
    )


def render_plan_in_parallel(plan: Plan, num_processes: int) -> Samples:
    """As `render_plan`, and the same result, in several processes."""
    edges = [*range(plan.start, plan.stop, 5000), plan.stop]
    plans = [replace(plan, start=start, stop=stop) for start, stop in itertools.pairwise(edges)]
    with get_context("spawn").Pool(num_processes) as pool:
        parts = pool.map(render_plan, plans, chunksize=1)
    return Samples(*(np.concatenate(arrays) for arrays in zip(*map(_arrays, parts), strict=True)))


def _arrays(samples: Samples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return samples.ids, samples.mask, samples.lengths
