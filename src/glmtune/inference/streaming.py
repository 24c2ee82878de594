"""Streams a reply as readable text while it is generated."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import cast

from transformers import GenerationConfig, PreTrainedModel

from glmtune.errors import ConfigError
from glmtune.inference.answering import stream_ids, uses_engine
from glmtune.inference.generate import generation_inputs, in_evaluation, out_of_memory_as_error
from glmtune.models.incremental import IncrementalDecoder
from glmtune.models.streaming import stream_token_ids
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Template, turn_token_id

_Ids = Generator[int, None, None]


def decode_reply(token_ids: Iterable[int], tokenizer: Tokenizer, template: Template) -> Iterator[str]:
    """Decodes a reply's ids to text, piece by piece; all pieces joined are `Reply.text` of the same ids.

    No piece ends within a character. The line that a message begins with (a tool's name, or nothing) is kept back,
    and white space around a turn is left out, as `prompts.parse_reply` does.

    Args:
        token_ids: The ids, as they are generated.
        tokenizer: The tokenizer.
        template: The template of the prompt.

    Yields:
        Text that can no longer change, never empty.
    """
    decoder = _ReplyDecoder(tokenizer, template)
    for token_id in token_ids:
        if text := decoder.push(token_id):
            yield text
    if text := decoder.flush():
        yield text


class _ReplyDecoder:
    """The state of `decode_reply`."""

    def __init__(self, tokenizer: Tokenizer, template: Template) -> None:
        self._tokenizer = tokenizer
        self._turn_id = turn_token_id(tokenizer, template)
        self._has_headers = self._turn_id is not None
        self._silent_ids = frozenset(tokenizer.all_special_ids)
        self._has_said_something = False
        self._start_turn()

    def _start_turn(self) -> None:
        self._decoder = IncrementalDecoder(self._tokenizer)
        self._header: str | None = "" if self._has_headers else None  # None once the line is complete
        self._has_content = False
        self._space = ""  # after the last visible character: printed only if another one follows

    def push(self, token_id: int) -> str:
        """Takes the next id and returns the text that can no longer change, often none."""
        if self._has_headers and token_id == self._turn_id:
            text = self.flush()
            self._start_turn()
            return text
        return "" if token_id in self._silent_ids else self._take(self._decoder.push([token_id]))

    def flush(self) -> str:
        """Ends the turn and returns the rest of its text."""
        text = self._take(self._decoder.flush())
        if self._header is not None:  # there was no line break, so all of it is content
            header, self._header = self._header, None
            text += self._take(header)
        return text

    def _take(self, text: str) -> str:
        if self._header is not None:
            self._header += text
            if "\n" not in self._header:
                return ""
            text = self._header.partition("\n")[2]
            self._header = None
        if not self._has_content:
            text = text.lstrip()
        visible = (self._space + text).rstrip()
        if not visible:
            self._space += text
            return ""
        self._space = (self._space + text)[len(visible) :]
        separator = "\n" if self._has_said_something and not self._has_content else ""
        self._has_content = self._has_said_something = True
        return separator + visible


def stream_text(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompt: list[int],
    template: Template,
    generation: GenerationConfig,
    token_ids: list[int],
) -> Generator[str, None, None]:
    """Generates a reply and yields readable text as it is generated.

    Closing the generator, or an exception in its consumer, stops generation after the current token.

    Args:
        model: A ChatGLM model, bare or within PEFT.
        tokenizer: The tokenizer.
        prompt: Ids that `render_prompt` returned.
        template: The template that they were rendered with.
        generation: From `build_generation_config`.
        token_ids: A list to which the reply's ids are appended as they are generated, so that they are available even
            if the reply is stopped.

    Yields:
        Pieces of text, none of them empty.

    Raises:
        ConfigError: Beam search is on; its reply is known only at the end.
        ModelError: Memory ran out, or the model computes NaN.
    """
    if (generation.num_beams or 1) > 1:
        raise ConfigError(f"num_beams: {generation.num_beams} beams cannot be streamed; set num_beams=1")
    if uses_engine(model, generation):
        ids = stream_ids(model, tokenizer, prompt, generation)
    else:
        ids = _stream_with_transformers(model, prompt, generation)
    with closing(ids) as new_ids:
        yield from decode_reply(_noted(new_ids, token_ids), tokenizer, template)


def _noted(new_ids: Iterable[int], token_ids: list[int]) -> Iterator[int]:
    for token_id in new_ids:
        token_ids.append(token_id)
        yield token_id


def _stream_with_transformers(model: PreTrainedModel, prompt: list[int], generation: GenerationConfig) -> _Ids:
    inputs = generation_inputs(model, [prompt], generation)
    with (
        in_evaluation(model),
        out_of_memory_as_error(inputs["input_ids"], generation),
        closing(cast(_Ids, stream_token_ids(model, inputs, generation_config=generation))) as new_ids,
    ):
        yield from new_ids
