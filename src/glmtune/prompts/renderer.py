"""Renders conversations."""

import functools
from collections.abc import Sequence

from glmtune.errors import DataError
from glmtune.prompts.conversation import Conversation, PromptTokenizer, Rendered, Template, check_supervision
from glmtune.prompts.templates import TEMPLATE_PIECES, Piece
from glmtune.prompts.truncation import shorten_contents, without_oldest_exchanges


def render(
    conversation: Conversation,
    tokenizer: PromptTokenizer,
    template: Template = "chatglm3",
    max_length: int | None = None,
) -> Rendered:
    """Renders a conversation for training.

    Truncation to `max_length`: first the oldest exchanges are dropped whole (never the system message or the last
    exchange); then the longest contents are cut at the end, all to one common length, so that short contents stay
    whole. Role tokens, metadata lines, the generation marker and end tokens are never cut; the token after an answer
    that was cut is not supervised.

    Args:
        conversation: Messages in a valid order, the last of them the assistant's.
        tokenizer: The tokenizer.
        template: `chatglm3` or `chatglm2` (each official), or `tutorial` (the tutorial's plain-text roles).
        max_length: Most tokens to return; None for no limit.

    Returns:
        Ids and loss mask.

    Raises:
        DataError: The template cannot express the conversation, or nothing is supervised: there is no supervised turn,
            or truncation would leave nothing of it.
    """
    if faults := check_supervision(conversation):
        raise DataError(faults[0])
    pieces, num_dropped, num_cut = _fit(conversation, tokenizer, template, max_length, for_training=True)
    rendered = Rendered(
        input_ids=[i for piece in pieces for i in piece.ids],
        loss_mask=[piece.is_supervised for piece in pieces for _ in piece.ids],
        num_cut_tokens=num_cut,
        num_dropped_messages=num_dropped,
    )
    if not any(rendered.loss_mask):
        raise DataError(
            f"nothing to learn from is left after truncation to {max_length} tokens: all supervised turns were "
            "dropped; raise data.max_length"
        )
    return rendered


def render_prompt(
    conversation: Conversation,
    tokenizer: PromptTokenizer,
    template: Template = "chatglm3",
    max_length: int | None = None,
) -> list[int]:
    """Renders a conversation up to the point where the model is to answer.

    For a conversation without its last answer this is an exact prefix of what `render` returns with it.

    Args:
        conversation: Messages whose last is the user's or an observation.
        tokenizer: The tokenizer.
        template: As for `render`.
        max_length: Most tokens to return, shortened as `render` does; None for no limit.

    Returns:
        Token ids that end with the generation marker.

    Raises:
        DataError: The template cannot express the conversation, or `max_length` cannot hold its role tokens.
    """
    pieces, _, _ = _fit(conversation, tokenizer, template, max_length, for_training=False)
    return [i for piece in pieces for i in piece.ids]


def _fit(
    conversation: Conversation,
    tokenizer: PromptTokenizer,
    template: Template,
    max_length: int | None,
    *,
    for_training: bool,
) -> tuple[list[Piece], int, int]:
    """Pieces that fit into `max_length`, and the numbers of messages dropped and tokens cut."""
    split = TEMPLATE_PIECES[template]
    messages = conversation.messages
    encode = functools.cache(tokenizer.encode_text)  # the bisection encodes each text only once
    pieces = split(messages, tokenizer, encode, for_training)
    if max_length is None:
        return pieces, 0, 0
    if _length(pieces) > max_length:
        messages = without_oldest_exchanges(
            messages, lambda rest: _length(split(rest, tokenizer, encode, for_training)) <= max_length
        )
        pieces = split(messages, tokenizer, encode, for_training)
    return pieces, len(conversation.messages) - len(messages), shorten_contents(pieces, max_length)


def _length(pieces: Sequence[Piece]) -> int:
    return sum(len(piece.ids) for piece in pieces)
