"""The page's second tab: from a data file to a run that one can talk to."""

import asyncio
from pathlib import Path
from typing import Any

import gradio as gr
import pandas

from glmtune.config import embedded_data
from glmtune.errors import GlmtuneError, ModelError
from glmtune.language import Language
from glmtune.server.errors import ApiError
from glmtune.server.service import Service
from glmtune.ui.chat_tab import ChatTab
from glmtune.ui.data_view import coloured_samples, run_command
from glmtune.ui.jobs import Jobs, command_of, folder_of, train_arguments
from glmtune.ui.results import Results
from glmtune.ui.texts import AT_ONCE, Texts, translated, warn

_STATES = {
    "running": "Training ...",
    "stopping": "Stopping: a checkpoint is being saved ...",
    "finished": "Finished.",
    "stopped": "Stopped; resume it, or talk to its last checkpoint.",
    "unsaved": "Stopped before anything was saved; start it again.",
    "failed": "It ended with an error:",
}
_NO_JOB = "Nothing has been started from the page yet."
_REFRESH_S = 1.0


class TrainTab:
    """The components, and what happens to them.

    Args:
        service: The server.
        jobs: Training runs that were started here.
        texts: The page's texts.
        language: The reader's language, a state of the page.
        chat: The other tab, which talks to the result.
        tabs: The tabs.
    """

    def __init__(
        self, service: Service, jobs: Jobs, texts: Texts, language: gr.State, chat: ChatTab, tabs: gr.Tabs
    ) -> None:
        self._service = service
        self._jobs = jobs
        self._results = Results(service.models)
        self._add_data(texts)
        self._add_settings(texts)
        self._add_progress(texts)
        self._connect(language, chat, tabs)

    def _add_data(self, texts: Texts) -> None:
        with gr.Row():
            with gr.Column(min_width=280):
                self._file = texts.add(
                    gr.File(label="Data file (empty: the demo's)", elem_id="data", height=130),
                    label="Data file (empty: the demo's)",
                )
            with gr.Column(min_width=280):
                self._base = texts.add(
                    gr.Textbox(label="Base: a folder (empty: the tiny built-in one)", elem_id="base"),
                    label="Base: a folder (empty: the tiny built-in one)",
                )
                self._output = texts.add(
                    gr.Textbox(value="output/page", label="Run folder", elem_id="output"), label="Run folder"
                )
        with gr.Row(elem_classes="controls"):
            self._check = texts.add(gr.Button("Check the data", min_width=120, elem_id="check"), value="Check the data")
            self._plan = texts.add(gr.Button("Show the plan", min_width=120, elem_id="plan"), value="Show the plan")
        self._checked = gr.Code(language=None, show_label=False, visible=False, elem_id="checked", lines=1)
        self._samples = gr.HTML(elem_id="samples")

    def _add_settings(self, texts: Texts) -> None:
        with gr.Row():
            self._epochs = texts.add(
                gr.Number(8, label="Epochs", minimum=0.01, min_width=120, elem_id="epochs"), label="Epochs"
            )
            self._rate = texts.add(
                gr.Number(3e-3, label="Learning rate", minimum=0, step=1e-5, min_width=120), label="Learning rate"
            )
            self._rank = texts.add(
                gr.Number(16, label="LoRA rank", minimum=1, precision=0, min_width=120), label="LoRA rank"
            )
            self._length = texts.add(
                gr.Number(256, label="Longest sample, tokens", minimum=8, precision=0, min_width=120),
                label="Longest sample, tokens",
            )
        accordion = gr.Accordion("All other settings", open=False)
        with texts.add(accordion, label="All other settings"):
            self._system = texts.add(gr.Textbox(label="System prompt", lines=2), label="System prompt")
            self._more = texts.add(
                gr.Textbox(
                    label="One a line, as on the command line, such as train.save_steps=50", lines=4, elem_id="more"
                ),
                label="One a line, as on the command line, such as train.save_steps=50",
            )
        self._command = texts.add(
            gr.Textbox(
                command_of(train_arguments(None, "", "output/page", 8, 3e-3, 16, 256, "", "")),
                label="The same on the command line", interactive=False, elem_id="command", lines=2, buttons=["copy"],
            ),
            label="The same on the command line",
        )  # fmt: skip

    def _add_progress(self, texts: Texts) -> None:
        with gr.Row(elem_classes="controls"):
            self._start = texts.add(gr.Button("Start", variant="primary", min_width=90, elem_id="start"), value="Start")
            self._stop = texts.add(gr.Button("Stop", min_width=90, elem_id="halt"), value="Stop")
            self._resume = texts.add(gr.Button("Resume", min_width=90, elem_id="resume"), value="Resume")
            self._talk = texts.add(
                gr.Button("Talk to the result", min_width=120, elem_id="talk"), value="Talk to the result"
            )
        self._state = gr.Markdown(elem_id="state")
        self._curve = gr.LinePlot(x="step", y="loss", height=260, show_label=False, elem_id="curve")
        self._log = gr.Code(language=None, show_label=False, interactive=False, elem_id="log", lines=1)

    def _connect(self, language: gr.State, chat: ChatTab, tabs: gr.Tabs) -> None:
        settings = [
            self._file, self._base, self._output, self._epochs, self._rate, self._rank, self._length, self._system,
            self._more,
        ]  # fmt: skip
        self._base.change(self._defaults, self._base, [self._epochs, self._rate, self._rank, self._length], **AT_ONCE)
        for component in settings:
            component.change(self._show_command, settings, self._command, **AT_ONCE)
        seen = [self._checked, self._samples]
        data = [self._file, self._base, self._system, self._length, language]
        self._check.click(self._show_data, data, seen)
        self._file.upload(self._show_data, data, seen)
        self._plan.click(self._show_plan, [language, *settings], self._checked)
        shown = [self._state, self._curve, self._log]
        self._start.click(self._begin, [language, *settings], shown)
        self._resume.click(self._begin_again, [language, *settings], shown)
        self._stop.click(self._halt, language, shown, **AT_ONCE)
        self._talk.click(self._talk_to_result, language, [tabs, chat.model, chat.other])
        timer = gr.Timer(_REFRESH_S)
        timer.tick(self._show_news, [language, self._state, self._log], shown, **AT_ONCE)

    # The settings as the command line takes them

    def _show_command(self, *settings: Any) -> str:
        return command_of(train_arguments(*settings))

    def _defaults(self, base: str) -> tuple[float, float, int, int]:
        """The tiny base wants other settings than a real one."""
        return (3, 1e-4, 8, 512) if base.strip() else (8, 3e-3, 16, 256)

    # Before training

    async def _show_data(
        self, file: str | None, base: str, system: str, length: int, language: Language
    ) -> tuple[Any, str]:
        path = file or str(embedded_data())
        checked = await asyncio.to_thread(run_command, ["data", "check", path], language)
        try:
            samples = await asyncio.to_thread(
                coloured_samples, path, (base or "").strip(), (system or "").strip() or None, int(length or 512)
            )
        except GlmtuneError as error:
            warn(str(error), language)
            samples = ""
        return gr.update(value=checked.replace(path, Path(path).name), visible=True), samples

    async def _show_plan(self, language: Language, *settings: Any) -> Any:
        planned = await asyncio.to_thread(run_command, ["plan", *train_arguments(*settings)], language)
        return gr.update(value=planned, visible=True)

    # While training

    def _begin(self, language: Language, *settings: Any) -> tuple[Any, Any, Any]:
        return self._launch(train_arguments(*settings), language)

    def _begin_again(self, language: Language, *settings: Any) -> tuple[Any, Any, Any]:
        job = self._jobs.current
        arguments = train_arguments(*settings) if job is None else job.arguments
        resume = "train.resume_from_checkpoint=true"
        return self._launch([*(each for each in arguments if each != resume), resume], language)

    def _launch(self, arguments: list[str], language: Language) -> tuple[Any, Any, Any]:
        try:
            self._jobs.start(arguments, folder_of(arguments), language)
        except GlmtuneError as error:
            warn(str(error), language)
        return self._show_job(language)

    def _halt(self, language: Language) -> tuple[Any, Any, Any]:
        self._jobs.stop()
        return self._show_job(language)

    def _show_job(self, language: Language) -> tuple[Any, Any, Any]:
        job = self._jobs.current
        if job is None:
            return translated(_NO_JOB, language), None, ""
        progress = job.progress()
        lines = [f"**{translated(_STATES[job.state], language)}** `{job.folder}`"]
        if (last := progress.last) is not None:
            speed = f"{last.get('tokens_per_second', 0):,.0f} tokens/s"
            step = translated(f"step {last['step']} of {last['max_steps']}", language)
            lines.append(f"{step} · loss {last['loss']:.4f} · {speed}")
        points = pandas.DataFrame(progress.points, columns=["step", "loss"])
        return "\n\n".join(lines), points, job.last_lines()

    def _show_news(self, language: Language, state: str, log: str) -> tuple[Any, Any, Any]:
        """As `_show_job`, but nothing where the page shows it already; the curve changes with the state."""
        shown = self._show_job(language)
        return (gr.skip(), gr.skip(), gr.skip()) if (state, log) == (shown[0], shown[2]) else shown

    # After training

    async def _talk_to_result(self, language: Language) -> tuple[Any, Any, Any]:
        try:
            name = await self._load_result()
        except (GlmtuneError, ApiError) as error:
            warn(str(error), language)
            return gr.skip(), gr.skip(), gr.skip()
        names = [model.name for model in self._service.models.served]
        return gr.update(selected="chat"), gr.update(choices=names, value=name), gr.update(choices=[("-", ""), *names])

    async def _load_result(self) -> str:
        job = self._jobs.current
        if job is None:
            raise ModelError(_NO_JOB)
        return await asyncio.to_thread(self._results.load, job.folder)
