"""serve: a run over HTTP, and as a page."""

from typing import Annotated

import typer

from glmtune.cli.options import DtypeOption, QuantizeOption, not_empty
from glmtune.errors import ConfigError
from glmtune.language import localise

app = typer.Typer()

Runs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN ...]",
        callback=not_empty,
        help="Runs, checkpoints, or a base folder; NAME=RUN gives a run another name. Without any, the base alone.",
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base", callback=not_empty, help="The base model, by default the runs'; without runs, the tiny built-in one."
    ),
]
HostOption = Annotated[
    str,
    typer.Option("--host", callback=not_empty, help="The address to listen on; 0.0.0.0 opens it to the network."),
]
PortOption = Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 for any that is free.")]
KeyFileOption = Annotated[
    str | None,
    typer.Option(
        "--key-file", help="A file of API keys, one a line; without it, the one in GLMTUNE_API_KEY, if it is set."
    ),
]


@app.command()
def serve(
    runs: Runs = None,
    base: BaseOption = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    key_file: KeyFileOption = None,
    adapters_from: Annotated[
        list[str] | None,
        typer.Option(
            "--adapters-from", help="A folder from which clients may load adapters while it runs. Repeatable."
        ),
    ] = None,
    max_rows: Annotated[
        int | None,
        typer.Option(
            "--max-rows", min=1, max=4096, help="The most replies at once; by default 64 on a GPU and 8 on the CPU."
        ),
    ] = None,
    max_queue: Annotated[
        int, typer.Option("--max-queue", min=0, help="The most requests that wait; further ones are answered 429.")
    ] = 256,
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option("--max-prompt-tokens", min=1, help="The most tokens of a prompt, if fewer than the context has."),
    ] = None,
    max_body_kib: Annotated[
        int, typer.Option("--max-body-kib", min=1, help="The most KiB of a request's body.")
    ] = 1024,
    body_timeout_s: Annotated[
        int,
        typer.Option(
            "--body-timeout-s", min=1, help="Seconds within which a request's headers, and then its body, have to come."
        ),
    ] = 20,
    max_connections: Annotated[
        int,
        typer.Option("--max-connections", min=1, help="The most connections at once; further ones are answered 503."),
    ] = 1000,
    drain_s: Annotated[
        int, typer.Option("--drain-s", min=0, help="Seconds that replies may still run when the server is stopped.")
    ] = 30,
    cors: Annotated[
        list[str] | None,
        typer.Option("--cors", help="A web page's origin from which browsers may call the server. Repeatable."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            help="A name by which clients may call the server, beside localhost and --host. Repeatable. Without any, a "
            "server that is open to the network answers for every name.",
        ),
    ] = None,
    with_page: Annotated[
        bool, typer.Option("--ui", help="Also serve a page for the browser, for chatting and training.")
    ] = False,
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = "auto",
) -> None:
    """Serve runs over HTTP, as OpenAI's API does.

    For example: glmtune serve output/ChatGLM
    """
    import os
    import sys
    from contextlib import redirect_stdout
    from io import FileIO

    _require_extra(with_page)
    from glmtune.cli.setting_up import hide_loading_bars, outlive_display
    from glmtune.language.terminal import TerminalConsole
    from glmtune.server.app import create_app
    from glmtune.server.auth import ApiKeys, page_key, read_keys
    from glmtune.server.limits import PAGE_PATH
    from glmtune.server.metrics import Metrics
    from glmtune.server.models import find_runs, load_models
    from glmtune.server.requests import RequestLog
    from glmtune.server.running import address_of, answered_hosts, is_open_to_network, open_socket
    from glmtune.server.running import serve as run_server
    from glmtune.server.service import Service
    from glmtune.server.worker import Worker

    outlive_display()
    hide_loading_bars()
    keys = read_keys(key_file)
    found = find_runs(runs or [], base)
    opened = open_socket(host, port)
    if with_page and is_open_to_network(opened) and not keys:
        raise ConfigError(
            "a page that others on the network can open needs a key: it starts training runs, which write files. Set "
            "GLMTUNE_API_KEY or give --key-file"
        )
    with TerminalConsole(stderr=True).status("Loading the model ..."):
        models = load_models(found, dtype=dtype, quantize=quantize, max_rows=max_rows, allowed=adapters_from or ())
    worker = Worker(models.engine, max_queue)
    log = RequestLog(FileIO(sys.stdout.fileno(), "w", closefd=False))
    service = Service(models, worker, Metrics(models.engine), keys, log, max_prompt_tokens)
    application = create_app(
        service,
        origins=cors or (),
        hosts=answered_hosts(opened, host, allowed_host or ()),
        max_body_bytes=max_body_kib * 1024,
        body_timeout_s=body_timeout_s,
    )
    jobs = None
    if with_page:
        from glmtune.ui.jobs import Jobs
        from glmtune.ui.page import ENTRY_PATH, mount_page

        jobs = Jobs()
        own_key = None if keys else page_key()
        mount_page(application, service, jobs, keys if own_key is None else ApiKeys([own_key]))
        page = address_of(opened) + (PAGE_PATH if own_key is None else f"{ENTRY_PATH}#{own_key}")
    _say(f"models: {', '.join(model.name for model in models.served)}")
    if is_open_to_network(opened) and not keys:
        _say("Anybody on the network can use this server: it has no API key. Set GLMTUNE_API_KEY or give --key-file.")
    if with_page:
        _say(f"Page: {page}")
    _say(f"Serving at {address_of(opened)}/v1 (Ctrl-C stops it)")
    try:
        # Only the log writes there: what Gradio prints would get among its lines, or wait for somebody to read it.
        with open(os.devnull, "w", encoding="utf-8") as nothing, redirect_stdout(nothing):
            is_whole = run_server(
                application,
                service,
                opened,
                _say,
                drain_s=drain_s,
                max_connections=max_connections,
                header_timeout_s=body_timeout_s,
                has_page=with_page,
            )
    finally:
        if jobs is not None and not jobs.close():
            _say("The training run took too long to save a checkpoint and was aborted; its last checkpoint remains.")
        log.close()
    if not is_whole:
        raise typer.Exit(1)


@app.command()
def ui(
    runs: Runs = None,
    base: BaseOption = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    key_file: KeyFileOption = None,
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = "auto",
) -> None:
    """Open a page for the browser: chat, compare, train. The same as serve --ui.

    For example: glmtune ui output/ChatGLM
    """
    serve(runs, base=base, host=host, port=port, key_file=key_file, with_page=True, dtype=dtype, quantize=quantize)


def _say(line: str) -> None:
    typer.echo(localise(line), err=True)


def _require_extra(with_page: bool) -> None:
    """Says what to install where an extra is missing.

    Raises:
        ConfigError: It is.
    """
    from importlib.util import find_spec

    names = ["fastapi", "uvicorn", "prometheus_client", *(["gradio"] if with_page else [])]
    if missing := [name for name in names if find_spec(name) is None]:
        extra = "glmtune[ui]" if with_page else "glmtune[serve]"
        raise ConfigError(f"this needs {', '.join(missing)}. Install what is missing: pip install '{extra}'")
