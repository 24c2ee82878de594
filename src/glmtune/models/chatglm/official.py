"""The methods of the official models, for code written against them.

New code uses `glmtune.Chat`; both go through the same renderer and the same parser.

Source: `modeling_chatglm.py` of the official ChatGLM2-6B and ChatGLM3-6B releases.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Self, cast

import torch
from torch import Tensor
from transformers import BatchEncoding, GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from glmtune.errors import DataError, ModelError
from glmtune.models.chatglm.configuration import ChatGLMConfig
from glmtune.models.chatglm.stream_cache import StreamCache, open_cache
from glmtune.models.chatglm.tokenization import ChatGLMTokenizer
from glmtune.models.incremental import IncrementalDecoder
from glmtune.models.streaming import stream_token_ids
from glmtune.prompts import Message, parse_reply, parse_tool_call, turn_token_id

Messages = list[dict[str, Any]]
Pairs = list[tuple[str, Any]]
History = Messages | Pairs


class OfficialMethodsMixin:
    """Adds the official methods to a model that has `generate`; `quantize` names the alternative."""

    device: torch.device
    config: ChatGLMConfig
    generate: Callable[..., Any]

    def process_response(
        self, messages: Sequence[Message], history: Sequence[dict[str, Any]]
    ) -> tuple[str | dict[str, Any], Messages]:
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
            history: Earlier messages as returned by the last call, or ChatGLM2's pairs of question and answer; it is
                not changed.
            role: `user`, or `observation` for a tool's result.
            max_length: Maximum number of tokens of prompt and reply together.
            num_beams: Number of beams.
            do_sample: Whether to sample.
            top_p: Nucleus size.
            temperature: Temperature.
            **kwargs: Further arguments of `generate`.

        Returns:
            The response (text, or a dictionary for a tool call) and the new history, in the form of the old one; from
            ChatGLM2 without a history, pairs.

        Raises:
            DataError: The history is malformed.
        """
        options = dict(max_length=max_length, num_beams=num_beams, **_sampling(do_sample, top_p, temperature), **kwargs)
        earlier = _as_messages(history)
        inputs = tokenizer.build_chat_input(query, history=earlier, role=role).to(self.device)
        output = self.generate(**inputs, eos_token_id=tokenizer.stop_token_ids, **options)
        messages = parse_reply(output[0, inputs["input_ids"].shape[1] :].tolist(), tokenizer, tokenizer.template)
        response, new_history = self.process_response(messages, [*earlier, {"role": role, "content": query}])
        return response, _in_form_of(history, query, response, new_history, tokenizer)

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
        return_past_key_values: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Answers one message, yielding the response so far and the history with it after every token.

        Args:
            tokenizer: The tokenizer.
            query: The new message.
            history: As for `chat`.
            role: As for `chat`.
            past_key_values: What the last question yielded, together with its history; the reply is the same without
                it, but what the model has read already is not read again.
            max_length: As for `chat`.
            do_sample: As for `chat`.
            top_p: As for `chat`.
            temperature: As for `chat`.
            return_past_key_values: Whether to yield the cache for the next question too.
            **kwargs: Further arguments of `generate`.

        Yields:
            Response and history, with `return_past_key_values` also the cache; a tool call is text until it is
            complete.

        Raises:
            ValueError: `past_key_values` comes from elsewhere, or without its history.
            DataError: As for `chat`.
        """
        options = dict(max_length=max_length, **_sampling(do_sample, top_p, temperature), **kwargs)
        earlier = _as_messages(history)
        inputs = tokenizer.build_chat_input(query, history=earlier, role=role).to(self.device)
        kept: StreamCache | None = None
        if past_key_values is not None or return_past_key_values:
            kept = open_cache(past_key_values, bool(earlier), self.config)
            kept.keep_prefix_of(inputs["input_ids"][0].tolist())
            options["past_key_values"] = kept.cache

        def result(response: Any, messages: Messages) -> tuple[Any, ...]:
            new_history = _in_form_of(history, query, response, messages, tokenizer)
            return (response, new_history, kept) if return_past_key_values else (response, new_history)

        with_query = [*earlier, {"role": role, "content": query}]
        token_ids: list[int] = []
        last, shown = _LastMessage(tokenizer), ""
        for token_id in stream_token_ids(self, inputs, eos_token_id=tokenizer.stop_token_ids, **options):
            token_ids.append(token_id)
            if kept is not None:
                kept.append(token_id)
            metadata, content = last.push(token_id)
            if content and content != shown:
                shown = content
                reply = {"role": "assistant", "metadata": metadata, "content": shown}
                yield result(shown, [*with_query, reply])
        messages = parse_reply(token_ids, tokenizer, tokenizer.template)
        yield result(*self.process_response(messages, with_query))

    def build_inputs(
        self, tokenizer: ChatGLMTokenizer, query: str, history: Sequence[tuple[str, str]] | None = None
    ) -> BatchEncoding:
        """ChatGLM2's prompt for a question, on the model's device; the official signature.

        Args:
            tokenizer: The tokenizer.
            query: The new question.
            history: Earlier questions and replies.

        Returns:
            `input_ids` and `attention_mask`, int64, [1, T].
        """
        return tokenizer([tokenizer.build_prompt(query, history=history)], return_tensors="pt").to(self.device)

    def quantize(self, bits: int, *args: Any, **kwargs: Any) -> Self:
        """The official method to quantise a loaded model; here a base is quantised while it is loaded.

        Args:
            bits: 0 leaves the model unchanged; all other values are refused.
            *args: Unused.
            **kwargs: Unused.

        Raises:
            ModelError: `bits` is not 0.
        """
        if bits == 0:
            return self
        raise ModelError(
            f"quantize({bits}) is not supported: a model is quantised while it is loaded. Use "
            'glmtune.load(FOLDER, quantize="nf4") or `glmtune chat FOLDER --quantize nf4` for 4 bits, int8 for 8; '
            "to train, set model.quantize"
        )

    def stream_generate(
        self,
        input_ids: Tensor,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
        return_past_key_values: bool = False,
        **kwargs: Any,
    ) -> Iterator[Tensor]:
        """Generates, yielding the whole sequence after every new token; the official signature.

        Args:
            input_ids: The prompt, [1, T], int64.
            generation_config: As for `generate`.
            logits_processor: As for `generate`.
            stopping_criteria: As for `generate`.
            prefix_allowed_tokens_fn: As for `generate`.
            return_past_key_values: Must be false: the cache stays in `generate`.
            **kwargs: Further arguments of `generate`.

        Yields:
            Token ids, [1, T + n] after n new tokens, including the one that ends the reply.

        Raises:
            ValueError: There are several rows, or the cache is requested.
        """
        if input_ids.shape[0] != 1:
            raise ValueError(f"stream_generate takes one row of input_ids, found {input_ids.shape[0]}; use generate")
        if return_past_key_values:
            raise ValueError("stream_generate keeps its cache to itself; leave return_past_key_values out")
        new_ids = stream_token_ids(
            self,
            {"inputs": input_ids},
            generation_config=generation_config,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria or (),
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            **kwargs,
        )
        for token_id in new_ids:
            input_ids = torch.cat([input_ids, input_ids.new_tensor([[token_id]])], dim=1)
            yield input_ids


class _LastMessage:
    """The message that a reply ends with so far, as `parse_reply` reads it; each id is decoded only a few times.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: ChatGLMTokenizer) -> None:
        self._tokenizer = tokenizer
        self._turn_id = turn_token_id(tokenizer, tokenizer.template)
        self._begin()

    def _begin(self) -> None:
        self._decoder = IncrementalDecoder(self._tokenizer)
        self._text = ""

    def push(self, token_id: int) -> tuple[str, str]:
        """Takes the next id; returns metadata and content, as far as characters are whole."""
        if token_id == self._turn_id:
            self._begin()
        else:
            self._text += self._decoder.push([token_id])
        metadata, newline, content = self._text.partition("\n")
        if self._turn_id is None or not newline:
            return "", self._text.strip()
        return metadata.strip(), content.strip()


def _is_pairs(history: Sequence[Any]) -> bool:
    """Whether a history consists of ChatGLM2's pairs of question and answer."""
    return bool(history) and all(isinstance(entry, tuple | list) for entry in history)


def _as_messages(history: History | None) -> Messages:
    """A history in either form as messages."""
    if not history or not _is_pairs(history):
        return cast(Messages, list(history or ()))
    for number, pair in enumerate(history, start=1):
        if len(pair) != 2:
            raise DataError(f"history, entry {number}: expected a pair of question and answer; found {len(pair)} texts")
    return [
        {"role": role, "content": text}
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _in_form_of(
    history: History | None, query: str, response: Any, messages: Messages, tokenizer: ChatGLMTokenizer
) -> History:
    """The new history in the form of the old one; where there was none, pairs from ChatGLM2, else messages."""
    if _is_pairs(history or ()) or (not history and not tokenizer.has_role_tokens):
        return [*(cast(Pairs, history) or ()), (query, response)]
    return messages


def _sampling(do_sample: bool, top_p: float, temperature: float) -> dict[str, Any]:
    return {"do_sample": True, "top_p": top_p, "temperature": temperature} if do_sample else {"do_sample": False}
