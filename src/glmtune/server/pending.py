"""From a valid request to the replies that the worker makes: the same way for the API and for the page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from glmtune.inference.engine.request import Request
from glmtune.server.answers import Usage
from glmtune.server.generation import Choice
from glmtune.server.models import ServedModel
from glmtune.server.prompting import away_from_loop, chat_length, chat_prompt, text_prompt
from glmtune.server.protocol import ChatRequest, CompletionRequest
from glmtune.server.replies import ReplyReader
from glmtune.server.requests import RequestRecord
from glmtune.server.service import Service
from glmtune.server.tool_choice import begin_call
from glmtune.server.worker import Ticket


@dataclass
class Pending:
    """A request that the worker has taken.

    Attributes:
        service: The server.
        record: What the log says of the request.
        served: The model that answers.
        num_prompt: Tokens of all prompts.
        choices: The choices.
    """

    service: Service
    record: RequestRecord
    served: ServedModel
    num_prompt: int = 0
    choices: list[Choice] = field(default_factory=list)
    _tickets: list[Ticket] = field(default_factory=list)

    def start(self, requests: Sequence[Request], is_whole: bool, reader: Callable[[], ReplyReader]) -> None:
        """Hands the requests to the worker.

        Raises:
            ApiError: Too many are waiting, or the server is about to stop.
        """
        self._tickets = self.service.submit(requests, is_whole=is_whole)
        worker, tokenizer = self.service.worker, self.service.models.tokenizer
        self.choices = [Choice(index, each, reader(), worker, tokenizer) for index, each in enumerate(self._tickets)]

    def end(self) -> None:
        """Gives up what has not ended, and counts what has been generated."""
        self.service.worker.cancel(self._tickets)
        self.record.prompt_tokens, self.record.completion_tokens = self.num_prompt, self.usage.completion_tokens
        times = [ticket.first_token_at for ticket in self._tickets if ticket.first_token_at is not None]
        self.record.first_token_at = min(times, default=None)

    def note_finish(self) -> None:
        """Notes why the replies have ended."""
        self.record.finish = ",".join(sorted({choice.finish_reason or "" for choice in self.choices}))

    def abandon(self) -> None:
        """Notes that the client has gone away."""
        self.record.is_cancelled = True

    @property
    def usage(self) -> Usage:
        """The tokens so far."""
        return Usage.of(self.num_prompt, sum(choice.num_tokens for choice in self.choices))


async def start_chat(service: Service, record: RequestRecord, body: ChatRequest) -> Pending:
    """Starts the replies to a conversation.

    Args:
        service: The server.
        record: Gets the model's name and the client's user.
        body: The request.

    Raises:
        ApiError: The request cannot be answered.
    """
    pending = _pending(service, record, body)
    served, tools = pending.served, None if body.tool_choice == "none" else body.tools
    length = chat_length(body.messages, tools)
    prompt_ids = await away_from_loop(length, lambda: chat_prompt(service.models, served, body.messages, tools))
    called = None
    if body.must_call:
        service.check_length(prompt_ids, body)
        called, name_ids = await begin_call(service, served, prompt_ids, body.must_call)
        prompt_ids = prompt_ids + name_ids
    pending.num_prompt = len(prompt_ids)

    def reader() -> ReplyReader:
        return ReplyReader(service.models.tokenizer, served.template, body.tool_names, body.stop_texts, called)

    requests = service.requests(served, prompt_ids, body)
    pending.start(requests, not body.stream and not body.stop_texts, reader)
    return pending


async def start_texts(service: Service, record: RequestRecord, body: CompletionRequest) -> Pending:
    """Starts the continuations of texts; arguments and errors are as for `start_chat`."""
    pending = _pending(service, record, body)
    length = sum(map(len, body.prompts))
    prompts = await away_from_loop(length, lambda: [text_prompt(service.models, prompt) for prompt in body.prompts])
    pending.num_prompt = sum(map(len, prompts))

    def reader() -> ReplyReader:
        return ReplyReader(service.models.tokenizer, None, stop_texts=body.stop_texts)

    requests = [request for ids in prompts for request in service.requests(pending.served, ids, body)]
    pending.start(requests, not body.stream and not body.stop_texts, reader)
    return pending


def _pending(service: Service, record: RequestRecord, body: ChatRequest | CompletionRequest) -> Pending:
    served = service.models.get(body.model)
    record.model, record.user = served.name, body.user
    return Pending(service, record, served)
