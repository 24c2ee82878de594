"""A reply while it is being made: token ids out of a running `generate`, readable text out of token ids."""

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from queue import SimpleQueue
from threading import Event

import torch
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from glmtune.errors import ConfigError
from glmtune.inference.generate import generate_ids
from glmtune.models.chatglm import ChatGLMTokenizer, IncrementalDecoder
from glmtune.prompts import Template


class _QueueStreamer(BaseStreamer):
    """Hands new ids on as `generate` finds them; the first call brings the prompt, which is no news."""

    def __init__(self, queue: "SimpleQueue[list[int] | None]") -> None:
        self._queue = queue
        self._has_seen_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if self._has_seen_prompt:
            self._queue.put(value.flatten().tolist())
        self._has_seen_prompt = True

    def end(self) -> None:
        """Nothing to do: the end of the thread is the end of the reply, also where it failed."""


class _StopWhenSet(StoppingCriteria):
    def __init__(self, event: Event) -> None:
        self._event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor | None, **kwargs: object) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._event.is_set(), device=input_ids.device, dtype=torch.bool)


def stream_ids(
    model: PreTrainedModel, prompt: list[int], generation: GenerationConfig
) -> Generator[list[int], None, None]:
    """Generates in a thread and yields new ids as they come.

    Closing the generator, or an exception where it is consumed, stops the model after the token it is at.

    Args:
        model: A ChatGLM model, bare or within PEFT.
        prompt: Ids that `render_prompt` returned.
        generation: From `build_generation_config`.

    Yields:
        The next ids of the reply, the one that ends it included.

    Raises:
        ConfigError: Beam search was asked for; it knows its reply only at the end.
        GlmtuneError: Whatever `generate_ids` raises.
    """
    if (generation.num_beams or 1) > 1:
        raise ConfigError(f"num_beams: {generation.num_beams} beams cannot be streamed; set num_beams=1")
    queue: SimpleQueue[list[int] | None] = SimpleQueue()
    stop = Event()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="glmtune-generate") as pool:
        result = pool.submit(
            generate_ids, model, [prompt], generation, streamer=_QueueStreamer(queue), stopping=_StopWhenSet(stop)
        )
        result.add_done_callback(lambda _: queue.put(None))
        try:
            while (token_ids := queue.get()) is not None:
                yield token_ids
            result.result()
        finally:
            stop.set()


class ReplyDecoder:
    """Text of a reply from its ids, piece by piece; all pieces joined are `Reply.text` of the same ids.

    No piece ends within a character. The line that follows `<|assistant|>` (a tool's name, or nothing) is kept back,
    and white space around a turn is left out, as `prompts.parse_reply` does.
    """

    def __init__(self, tokenizer: ChatGLMTokenizer, template: Template) -> None:
        self._tokenizer = tokenizer
        self._has_headers = template == "chatglm3"
        self._turn_id = tokenizer.get_command("<|assistant|>")
        self._has_said_something = False
        self._start_turn()

    def push(self, token_ids: Iterable[int]) -> str:
        """Takes the next ids and returns the text that is certain by now, often none."""
        text = ""
        for token_id in token_ids:
            if self._has_headers and token_id == self._turn_id:
                text += self._end_turn()
                self._start_turn()
            else:
                text += self._take(self._decoder.push([token_id]))
        return text

    def flush(self) -> str:
        """Ends the reply and returns what was kept back of its text."""
        return self._end_turn()

    def _start_turn(self) -> None:
        self._decoder = IncrementalDecoder(self._tokenizer)
        self._header: str | None = "" if self._has_headers else None  # None once the line is complete
        self._has_content = False
        self._space = ""  # after the last visible character: printed only if another one follows

    def _end_turn(self) -> str:
        text = self._take(self._decoder.flush())
        if self._header is not None:  # the model wrote no line of its own: all of it is content
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
    tokenizer: ChatGLMTokenizer,
    prompt: list[int],
    template: Template,
    generation: GenerationConfig,
    token_ids: list[int],
) -> Generator[str, None, None]:
    """Generates in a thread and yields readable text as it comes.

    Args:
        model: A ChatGLM model, bare or within PEFT.
        tokenizer: The tokenizer.
        prompt: Ids that `render_prompt` returned.
        template: The template that they were rendered with.
        generation: From `build_generation_config`.
        token_ids: A list that receives the ids of the reply as they come, so that a reply that was stopped is known
            as far as it got.

    Yields:
        Pieces of text, none of them empty.

    Raises:
        GlmtuneError: Whatever `stream_ids` raises.
    """
    decoder = ReplyDecoder(tokenizer, template)
    with closing(stream_ids(model, prompt, generation)) as pieces:
        for new_ids in pieces:
            token_ids += new_ids
            if text := decoder.push(new_ids):
                yield text
    if text := decoder.flush():
        yield text
