"""The official model's `chat` and `stream_chat`, for code written against them.

New code uses `glmtune.Chat`; both go through the same renderer and the same parser.

Source: `modeling_chatglm.py` of the official ChatGLM3-6B release.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch

from glmtune.errors import DataError
from glmtune.models.chatglm.tokenization import ChatGLMTokenizer
from glmtune.models.streaming import stream_token_ids
from glmtune.prompts import Message, parse_reply, parse_tool_call

History = list[dict[str, Any]]


class ChatMixin:
    """Adds `chat` and `stream_chat` to a model that has `generate`."""

    device: torch.device
    generate: Callable[..., Any]

    def process_response(
        self, messages: Sequence[Message], history: Sequence[dict[str, Any]]
    ) -> tuple[str | dict[str, Any], History]:
        """Turns the assistant's messages into the official response and the history with them.

        Args:
            messages: The model's messages, from `parse_reply`.
            history: The messages so far, including the last question.

        Returns:
            The last message's text, or for a tool call its `name` and `parameters` (its `content` where the system
            message offers no tools, or the call is not a `tool_call` with literal arguments); and the new history.
        """
        replies = [{"role": "assistant", "metadata": m.metadata, "content": m.content} for m in messages]
        last = messages[-1]
        response: str | dict[str, Any] = last.content
        if last.metadata:
            response = {"name": last.metadata, "content": last.content}
            if history and history[0].get("tools"):
                with suppress(DataError):  # a malformed call is returned as it is
                    response = {"name": last.metadata, "parameters": parse_tool_call(last.content)}
        return response, [*history, *replies]

    @torch.inference_mode()
    def chat(
        self,
        tokenizer: ChatGLMTokenizer,
        query: str,
        history: History | None = None,
        role: str = "user",
        max_length: int = 8192,
        num_beams: int = 1,
        do_sample: bool = True,
        top_p: float = 0.8,
        temperature: float = 0.8,
        **kwargs: Any,
    ) -> tuple[str | dict[str, Any], History]:
        """Answers one message; the official signature.

        Args:
            tokenizer: The tokenizer.
            query: The new message.
            history: Earlier messages as returned by the last call; it is not changed.
            role: `user`, or `observation` for a tool's result.
            max_length: Maximum number of tokens of prompt and reply together.
            num_beams: Number of beams.
            do_sample: Whether to sample.
            top_p: Nucleus size.
            temperature: Temperature.
            **kwargs: Further arguments of `generate`.

        Returns:
            The response (text, or a dictionary for a tool call) and the new history.
        """
        options = dict(max_length=max_length, num_beams=num_beams, **_sampling(do_sample, top_p, temperature), **kwargs)
        inputs = tokenizer.build_chat_input(query, history=history, role=role).to(self.device)
        output = self.generate(**inputs, eos_token_id=tokenizer.stop_token_ids, **options)
        messages = parse_reply(output[0, inputs["input_ids"].shape[1] :].tolist(), tokenizer, tokenizer.template)
        return self.process_response(messages, [*(history or []), {"role": role, "content": query}])

    def stream_chat(
        self,
        tokenizer: ChatGLMTokenizer,
        query: str,
        history: History | None = None,
        role: str = "user",
        past_key_values: Any = None,
        max_length: int = 8192,
        do_sample: bool = True,
        top_p: float = 0.8,
        temperature: float = 0.8,
        **kwargs: Any,
    ) -> Iterator[tuple[str | dict[str, Any], History]]:
        """Answers one message, yielding the response so far and the history with it after every token.

        Args:
            tokenizer: The tokenizer.
            query: The new message.
            history: As for `chat`.
            role: As for `chat`.
            past_key_values: Accepted for old code; must be None, since the whole prompt is read each time.
            max_length: As for `chat`.
            do_sample: As for `chat`.
            top_p: As for `chat`.
            temperature: As for `chat`.
            **kwargs: Further arguments of `generate`.

        Yields:
            Response and history; a tool call is text until it is complete.

        Raises:
            ValueError: `past_key_values` is given.
        """
        if past_key_values is not None:
            raise ValueError("stream_chat reads the whole prompt each time; leave past_key_values out")
        options = dict(max_length=max_length, **_sampling(do_sample, top_p, temperature), **kwargs)
        with_query = [*(history or []), {"role": role, "content": query}]
        inputs = tokenizer.build_chat_input(query, history=history, role=role).to(self.device)
        token_ids: list[int] = []
        shown = ""
        for token_id in stream_token_ids(self, inputs, eos_token_id=tokenizer.stop_token_ids, **options):
            token_ids.append(token_id)
            messages = parse_reply(token_ids, tokenizer, tokenizer.template)
            text = messages[-1].content
            if text and text != shown and not text.endswith("\ufffd"):
                shown = text
                yield (
                    text,
                    [*with_query, {"role": "assistant", "metadata": messages[-1].metadata, "content": text}],
                )
        yield self.process_response(parse_reply(token_ids, tokenizer, tokenizer.template), with_query)


def _sampling(do_sample: bool, top_p: float, temperature: float) -> dict[str, Any]:
    return {"do_sample": True, "top_p": top_p, "temperature": temperature} if do_sample else {"do_sample": False}
