"""The page as a whole, and mounting it into the server."""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported, which reads it

import gradio as gr
from fastapi import FastAPI
from starlette.responses import FileResponse, RedirectResponse

from glmtune.language import Language, language
from glmtune.server.auth import ApiKeys
from glmtune.server.limits import PAGE_PATH
from glmtune.server.service import Service
from glmtune.ui.chat_tab import ChatTab
from glmtune.ui.jobs import Jobs
from glmtune.ui.policy import LoadNothingElsewhere
from glmtune.ui.texts import AT_ONCE, KEEP_LANGUAGE, READ_LANGUAGE, TELL_LANGUAGE, Texts
from glmtune.ui.train_tab import TrainTab

ENTRY_PATH = f"{PAGE_PATH}/enter"
_MAX_FILE_SIZE = "200mb"
_CSS, _ENTER = Path(__file__).with_name("page.css"), Path(__file__).with_name("enter.html")
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]


def build_page(service: Service, jobs: Jobs) -> gr.Blocks:
    """The page.

    Args:
        service: The server that it talks to.
        jobs: Training runs that were started here.
    """
    texts = Texts()
    with gr.Blocks(title="glmtune", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as page:
        chosen = gr.State(language())
        with gr.Row(elem_classes="top"):
            gr.Markdown("## glmtune")
            switch = gr.Radio(
                [("中文", "zh"), ("English", "en")], value=language(), show_label=False, container=False,
                elem_id="language", min_width=160,
            )  # fmt: skip
        with gr.Tabs() as tabs:
            with texts.add(gr.Tab("Chat", id="chat"), label="Chat"):
                chat = ChatTab(service, texts, chosen)
            with texts.add(gr.Tab("Train", id="train"), label="Train"):
                TrainTab(service, jobs, texts, chosen, chat, tabs)

        def speak(to: Language) -> list[Any]:
            return [to, to, *texts.updates(to)]

        outputs = [chosen, switch, *texts.components]
        spoken = page.load(speak, switch, outputs, js=READ_LANGUAGE, **AT_ONCE)
        page.load(chat.choices, None, [chat.model, chat.other], **AT_ONCE)
        again = switch.input(speak, switch, outputs, js=KEEP_LANGUAGE, **AT_ONCE)
        for each in (spoken, again):
            each.then(None, switch, None, js=TELL_LANGUAGE)
    return page


def mount_page(app: FastAPI, service: Service, jobs: Jobs, keys: ApiKeys) -> None:
    """Mounts the page at `/ui`; `/` leads there. With keys, one of them is the password.

    The link `/ui/enter#KEY` logs in by itself. What follows the # is never sent in an address.

    Args:
        app: From `create_app`.
        service: Its service.
        jobs: Training runs that were started here.
        keys: The keys that open the page.
    """

    def allow(_: str, password: str) -> bool:
        return keys.allow(b"Bearer " + password.encode())

    @app.get("/", include_in_schema=False)
    async def to_page() -> RedirectResponse:
        return RedirectResponse(PAGE_PATH)

    @app.get(ENTRY_PATH, include_in_schema=False)
    async def enter() -> FileResponse:
        return FileResponse(_ENTER)

    app.add_middleware(LoadNothingElsewhere)
    gr.mount_gradio_app(
        app,
        build_page(service, jobs),
        PAGE_PATH,
        auth=allow if keys else None,
        theme=gr.themes.Default(primary_hue="teal", font=_FONTS, font_mono=["ui-monospace", "monospace"]),
        css_paths=_CSS,
        ssr_mode=False,
        max_file_size=_MAX_FILE_SIZE,
        footer_links=[],
        show_error=True,
    )
