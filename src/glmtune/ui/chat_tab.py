"""The page's first tab: talking to a model, or to two side by side."""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr

from glmtune.errors import GlmtuneError
from glmtune.language import Language
from glmtune.server.service import Service
from glmtune.ui.talking import Messages, ask
from glmtune.ui.texts import AT_ONCE, Texts, warn

_NOBODY = ""
_HEIGHT = 460
# Writes the conversation as a line of messages, in the browser.
_EXPORT = Path(__file__).with_name("export.js").read_text(encoding="utf-8")
# Questions from several pages do not wait for each other here: who waits for whom is up to the engine.
_SIDE_BY_SIDE: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
_NUMBER = re.compile(r"-?\d{1,18}")


def text_of(message: dict[str, Any]) -> str:
    """The text of a message as the page shows it: a text, or a list of parts."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in content)


def plain(shown: list[dict[str, Any]] | None) -> Messages:
    """The messages that the page shows, as a request has them."""
    return [{"role": message["role"], "content": text_of(message)} for message in shown or []]


def with_question(shown: list[dict[str, Any]] | None, question: str) -> Messages:
    """The messages that the page shows and a new question, which takes the place of one that was never answered."""
    messages = plain(shown)
    while messages and messages[-1]["role"] == "user":
        messages.pop()
    return [*messages, {"role": "user", "content": question.strip()}]


def _head(system: str | None) -> Messages:
    return [{"role": "system", "content": system.strip()}] if system and system.strip() else []


class ChatTab:
    """The components, and what happens to them.

    Args:
        service: The server.
        texts: The page's texts.
        language: The reader's language, a state of the page.

    Attributes:
        model: The choice of the model.
        other: The choice of the model to compare with.
    """

    def __init__(self, service: Service, texts: Texts, language: gr.State) -> None:
        self._service = service
        names = self.names
        with gr.Row(elem_classes="controls"):
            self.model = texts.add(
                gr.Dropdown(names, value=names[0], label="Model", elem_id="model", min_width=140), label="Model"
            )
            self.other = texts.add(
                gr.Dropdown(
                    [("-", _NOBODY), *names], value=_NOBODY, label="Compare with", elem_id="other", min_width=140
                ),
                label="Compare with",
            )
        with gr.Row():
            self._left = self._chatbot("left", visible=True)
            self._right = self._chatbot("right", visible=False)
        with gr.Row(elem_classes="question"):
            self._question = texts.add(
                gr.Textbox(
                    show_label=False, container=False, lines=1, max_lines=6, scale=8, min_width=120,
                    placeholder="Ask something", elem_id="question",
                ),
                placeholder="Ask something",
            )  # fmt: skip
            self._send = texts.add(
                gr.Button("Send", variant="primary", min_width=60, scale=1, elem_id="send"), value="Send"
            )
            self._stop = texts.add(gr.Button("Stop", min_width=60, scale=1, elem_id="stop"), value="Stop")
        self._add_settings(texts)
        self._connect(language)

    @property
    def names(self) -> list[str]:
        """The names of the models."""
        return [model.name for model in self._service.models.served]

    def choices(self) -> tuple[Any, Any]:
        """What the two choices offer now."""
        names = self.names
        return gr.update(choices=names), gr.update(choices=[("-", _NOBODY), *names])

    def _chatbot(self, elem_id: str, visible: bool) -> gr.Chatbot:
        return gr.Chatbot(
            elem_id=elem_id, visible=visible, height=_HEIGHT, show_label=True, label=self.names[0], min_width=280,
            editable="user" if visible else None, buttons=["copy"], latex_delimiters=[], feedback_options=None,
            allow_tags=False,
        )  # fmt: skip

    def _add_settings(self, texts: Texts) -> None:
        accordion = gr.Accordion("Settings", open=False, elem_id="settings")
        with texts.add(accordion, label="Settings"):
            self._system = texts.add(
                gr.Textbox(label="System prompt (empty: the run's own)", lines=2, elem_id="system"),
                label="System prompt (empty: the run's own)",
            )
            with gr.Row():
                self._temperature = texts.add(
                    gr.Number(
                        0, minimum=0, maximum=2, step=0.1, label="Temperature (0: the likeliest reply)",
                        min_width=160, elem_id="temperature",
                    ),
                    label="Temperature (0: the likeliest reply)",
                )  # fmt: skip
                self._seed = texts.add(
                    gr.Textbox(label="Seed (empty: random)", max_lines=1, min_width=160, elem_id="seed"),
                    label="Seed (empty: random)",
                )
                self._top_p = gr.Number(1, minimum=0.01, maximum=1, step=0.05, label="top_p", min_width=160)
                most = max(2, self._service.models.max_length // 2)
                self._limit = texts.add(
                    gr.Number(min(512, most), minimum=1, precision=0, label="Most new tokens", min_width=160),
                    label="Most new tokens",
                )
        with gr.Row(elem_classes="controls"):
            self._clear = texts.add(gr.Button("Clear", size="sm", min_width=80, elem_id="clear"), value="Clear")
            self._export = texts.add(
                gr.Button("Export as training data (JSONL)", size="sm", min_width=160, elem_id="export"),
                value="Export as training data (JSONL)",
            )

    def _connect(self, language: gr.State) -> None:
        both = [self._left, self._right]
        inputs = [
            *both,
            self.model,
            self.other,
            self._system,
            self._temperature,
            self._seed,
            self._top_p,
            self._limit,
            language,
        ]
        self.model.change(self._label_chats, [self.model, self.other], both, **AT_ONCE)
        self.other.change(self._label_chats, [self.model, self.other], both, **AT_ONCE)
        running = []
        for trigger in (self._question.submit, self._send.click):
            asked = trigger(self._put_question, [self._question, *both], [self._question, *both], **AT_ONCE)
            running.append(asked.then(self._answer, inputs, both, **_SIDE_BY_SIDE))
        running.append(self._left.retry(self._answer_again, inputs, both, **_SIDE_BY_SIDE))
        running.append(self._left.edit(self._answer_edited, inputs, both, **_SIDE_BY_SIDE))
        self._stop.click(None, cancels=running, queue=False)
        self._clear.click(lambda: ([], []), None, both, cancels=running, **AT_ONCE)
        self._export.click(None, [self._left, self._system], None, js=_EXPORT)

    def _label_chats(self, model: str, other: str) -> tuple[Any, Any]:
        return gr.update(label=model), gr.update(label=other or "-", visible=bool(other))

    def _put_question(self, question: str, left: Any, right: Any) -> tuple[str, Any, Any]:
        if not question.strip():
            return question, left, right
        return "", with_question(left, question), with_question(right, question)

    async def _answer(
        self, left: Any, right: Any, model: str, other: str, system: str | None, temperature: float | None,
        seed: str | None, top_p: float | None, limit: int | None, language: Language,
    ) -> AsyncGenerator[tuple[Any, Any], None]:  # fmt: skip
        histories = [plain(left), plain(right)]
        if not histories[0] or histories[0][-1]["role"] != "user":
            yield histories[0], histories[1]
            return
        if other and len(histories[1]) != len(histories[0]):  # it was not there from the beginning
            histories[1] = list(histories[0])
        names = [model, *([other] if other else [])]
        options: dict[str, Any] = {"max_tokens": int(limit)} if limit else {}
        if temperature:
            options |= {"temperature": float(temperature), "top_p": float(top_p or 1)}
            options |= {"seed": int(seed)} if seed and _NUMBER.fullmatch(seed.strip()) else {}
        asked = [(name, [*_head(system), *history]) for name, history in zip(names, histories, strict=False)]
        try:
            async with aclosing(ask(self._service, asked, options)) as replies:
                async for texts in replies:
                    shown = [
                        [*history, {"role": "assistant", "content": text}] if text else history
                        for history, text in zip(histories, texts, strict=False)
                    ]
                    yield shown[0], shown[1] if other else histories[1]
        except GlmtuneError as error:
            warn(str(error), language)
            yield histories[0], histories[1]

    async def _answer_again(self, data: gr.RetryData, *values: Any) -> AsyncGenerator[tuple[Any, Any], None]:
        index = data.index if isinstance(data.index, int) else data.index[0]
        async with aclosing(self._from(index, None, *values)) as answers:
            async for answer in answers:
                yield answer

    async def _answer_edited(self, data: gr.EditData, *values: Any) -> AsyncGenerator[tuple[Any, Any], None]:
        index = data.index if isinstance(data.index, int) else data.index[0]
        async with aclosing(self._from(index, str(data.value), *values)) as answers:
            async for answer in answers:
                yield answer

    async def _from(self, index: int, text: str | None, *values: Any) -> AsyncGenerator[tuple[Any, Any], None]:
        """Asks the question at an index again, perhaps with another text; what came after it is dropped."""
        left, right, *rest = values
        histories: list[Any] = [plain(left)[: index + 1], plain(right)[: index + 1]]
        while histories[0] and histories[0][-1]["role"] != "user":
            histories = [history[:-1] for history in histories]
        if text is not None:
            for history in histories:
                if history:
                    history[-1] = {"role": "user", "content": text}
        async with aclosing(self._answer(*histories, *rest)) as answers:
            async for answer in answers:
                yield answer
