"""A conversation with a model, in Python."""

from collections.abc import Generator
from contextlib import closing
from typing import Any, Literal

from transformers import PreTrainedModel

from glmtune.inference.generate import Reply, answer_one, fit_prompt, max_prompt_tokens, read_reply
from glmtune.inference.options import build_generation_config, remembered_prompt
from glmtune.inference.streaming import stream_text
from glmtune.models.families import shape_of
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Conversation, Message, Template


class Chat:
    """A conversation with a history.

    When it exceeds the model's context length, the oldest exchanges are left out of the prompt but stay in the history.

        model, tokenizer = glmtune.load("output/ChatGLM")
        chat = glmtune.Chat(model, tokenizer)
        chat.ask("你是谁？")

    Attributes:
        history: The messages so far, without the system prompt. A tool call is an assistant's message with the tool's
            name as its metadata; answer it with `ask(result, role="observation")`.
        system: The system prompt; may be set at any time and applies from the next question on.
        template: The prompt template.
        num_cut_tokens: Tokens of the last prompt that were left out, since the model reads no more: of the oldest
            exchanges first, then of the question.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        template: Template | None = None,
        system: str | None = None,
        **options: Any,
    ) -> None:
        """Starts a conversation.

        Args:
            model: A ChatGLM model, bare or within PEFT.
            tokenizer: Its tokenizer; that from `glmtune.load` holds the run's template and system prompt.
            template: The prompt template; None for the tokenizer's.
            system: The system prompt; None for the tokenizer's, "" for none at all.
            **options: Sampling options by their transformers names. Without any, replies are greedy.

        Raises:
            ConfigError: An option is unknown or out of range.
        """
        self.template, self.system = remembered_prompt(tokenizer, template, system)
        self.history: list[Message] = []
        self.num_cut_tokens = 0
        self._model = model
        self._tokenizer = tokenizer
        self._generation = build_generation_config(tokenizer, shape_of(model).context_length, options)

    def ask(self, text: str, role: Literal["user", "observation"] = "user") -> str:
        """Sends a message and returns the whole reply.

        Args:
            text: The message.
            role: `observation` if the text is a tool's result.

        Returns:
            The reply; for a tool call, its code. The messages are appended to `history`.

        Raises:
            DataError: The history with this message is not in a valid order, or the template cannot express it.
            ModelError: Memory ran out. The history stays as it was.
        """
        message = Message(role, text)
        token_ids = answer_one(self._model, self._tokenizer, self._prompt(message), self._generation)
        return self._remember(message, token_ids).text

    def stream(self, text: str, role: Literal["user", "observation"] = "user") -> Generator[str, None, None]:
        """Sends a message and yields the reply as it is generated; joined, the pieces are what `ask` returns.

        Closing the generator (or Ctrl-C) stops generation. The partial reply stays in the history; if it is empty, the
        question is removed too.

        Args:
            text: The message.
            role: `observation` if the text is a tool's result.

        Yields:
            Pieces of text, none of them empty or ending within a character.

        Raises:
            ConfigError: The options ask for beam search, which cannot be streamed.
            DataError: As for `ask`.
            ModelError: As for `ask`.
        """
        message = Message(role, text)
        token_ids: list[int] = []
        pieces = stream_text(
            self._model, self._tokenizer, self._prompt(message), self.template, self._generation, token_ids
        )
        try:
            with closing(pieces):
                yield from pieces
        except (GeneratorExit, KeyboardInterrupt):
            if self._read(token_ids).text:
                self._remember(message, token_ids)
            raise
        self._remember(message, token_ids)

    def reset(self) -> None:
        """Clears the history; the system prompt stays."""
        self.history.clear()

    def _prompt(self, message: Message) -> list[int]:
        conversation = Conversation((*self.history, message)).with_system(self.system)
        prompt, self.num_cut_tokens = fit_prompt(conversation, self._tokenizer, self.template, self.max_prompt_tokens)
        return prompt

    @property
    def max_prompt_tokens(self) -> int:
        """The most tokens of a prompt that leave room for a reply."""
        return max_prompt_tokens(self._model, self._generation)

    def _read(self, token_ids: list[int]) -> Reply:
        return read_reply(token_ids, self._tokenizer, self.template, self._generation)

    def _remember(self, message: Message, token_ids: list[int]) -> Reply:
        reply = self._read(token_ids)
        self.history += [message, *reply.messages]
        return reply
