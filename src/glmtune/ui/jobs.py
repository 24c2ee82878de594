"""Training runs that are started from the page, each in a process of its own."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glmtune.adapters.run_folder import LOG_NAME, find_adapter
from glmtune.config.yaml_text import parse_value
from glmtune.errors import ConfigError, GlmtuneError, TrainingError
from glmtune.language import Language
from glmtune.ui.losses import LossReader, Progress

State = Literal["running", "stopping", "finished", "stopped", "unsaved", "failed"]
_INTERRUPTED = 130
_MOST_LINES, _MOST_BYTES = 12, 2**14


@dataclass
class Job:
    """A training run.

    Attributes:
        arguments: What `glmtune train` was given.
        folder: The run folder.
        log: The file with what it has printed.
        process: The process.
        is_stopping: Whether it has been asked to stop.
    """

    arguments: list[str]
    folder: Path
    log: Path
    process: subprocess.Popen[bytes]
    is_stopping: bool = False

    def __post_init__(self) -> None:
        self._losses = LossReader(self.folder / LOG_NAME)

    @property
    def state(self) -> State:
        """How it is going."""
        code = self.process.poll()
        if code is None:
            return "stopping" if self.is_stopping else "running"
        if code == 0 or not (self.is_stopping or code == _INTERRUPTED):
            return "finished" if code == 0 else "failed"
        return "stopped" if _has_adapter(self.folder) else "unsaved"

    def last_lines(self) -> str:
        """The end of what it has printed."""
        text = b""
        with suppress(OSError), self.log.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _MOST_BYTES))
            text = stream.read()
        lines = text.decode("utf-8", errors="replace").replace("\r", "\n").splitlines()
        return "\n".join([line for line in lines if line.strip()][-_MOST_LINES:])

    def progress(self) -> Progress:
        """Its losses so far."""
        return self._losses.read()


def setting(key: str, text: str) -> str:
    """A text as a setting of the command line: in quotes where YAML would read something else."""
    try:
        is_read_as_it_is = parse_value(text) == text
    except ConfigError:
        is_read_as_it_is = False
    return f"{key}={text if is_read_as_it_is else json.dumps(text, ensure_ascii=False)}"


def train_arguments(
    file: str | None, base: str, output: str, epochs: float, rate: float, rank: int, length: int,
    system: str, more: str,
) -> list[str]:  # fmt: skip
    """What is filled in on the page, as arguments of `glmtune train`.

    Args:
        file: The data file; None for the demo's.
        base: The base; "" for the tiny built-in one.
        output: The run folder.
        epochs: `train.num_train_epochs`.
        rate: `train.learning_rate`.
        rank: `lora.r`.
        length: `data.max_length`, in tokens.
        system: The system prompt.
        more: Further settings, one a line; they take precedence.
    """
    base = (base or "").strip()
    arguments = [setting("model.path", base)] if base else ["demo"]
    if file:
        arguments.append(setting("data.path", file))
    arguments += [
        setting("train.output_dir", (output or "").strip() or "output/page"),
        f"train.num_train_epochs={epochs or 1:g}",
        f"train.learning_rate={rate or 0:g}",
        f"lora.r={int(rank or 8)}",
        f"data.max_length={int(length or 512)}",
    ]
    if system and system.strip():
        arguments.append(setting("prompt.system", system.strip()))
    own = [line.strip() for line in (more or "").splitlines() if line.strip()]
    keys = {key.strip() for key, equals, _ in (line.partition("=") for line in own) if equals}
    return [each for each in arguments if each.partition("=")[0] not in keys] + own


def folder_of(arguments: Sequence[str]) -> Path:
    """The run folder that arguments of `glmtune train` name."""
    text = next(each.partition("=")[2] for each in arguments if each.partition("=")[0].strip() == "train.output_dir")
    try:
        return Path(str(parse_value(text))).expanduser()
    except (ConfigError, RuntimeError):  # train will say so
        return Path(text)


def command_of(arguments: Sequence[str]) -> str:
    """The command line that does the same."""
    return shlex.join(["glmtune", "train", *arguments])


class Jobs:
    """The one run that trains at a time. It belongs to the server, so that every page finds it."""

    def __init__(self) -> None:
        self.current: Job | None = None
        self._changing = threading.Lock()  # pages ask in threads of their own
        self._folder = tempfile.TemporaryDirectory(prefix="glmtune-")

    def start(self, arguments: Sequence[str], folder: Path, language: Language) -> Job:
        """Starts a run.

        Args:
            arguments: As for `glmtune train`.
            folder: The run folder that they name.
            language: The language of what it prints.

        Raises:
            TrainingError: One is still running.
        """
        environment = {**os.environ, "GLMTUNE_LANG": language, "PYTHONUNBUFFERED": "1"}
        environment.pop("GLMTUNE_API_KEY", None)
        with self._changing:
            if self.current is not None and self.current.process.poll() is None:
                raise TrainingError("a run that was started from the page still trains; stop it first")
            log = Path(self._folder.name) / "train.log"
            with log.open("wb") as stream:
                # In a session of its own, so that Ctrl-C at the server does not reach it as well.
                process = subprocess.Popen(
                    [sys.executable, "-m", "glmtune", "train", *arguments],
                    stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=environment,
                    start_new_session=True,
                )  # fmt: skip
            self.current = Job(list(arguments), folder, log, process)
            return self.current

    def stop(self) -> None:
        """Asks the run to save a checkpoint and end, as Ctrl-C does."""
        with self._changing:
            job = self.current
            if job is not None and job.state == "running":  # a second signal would abort what the first has asked for
                job.is_stopping = True
                if os.name == "posix":
                    job.process.send_signal(signal.SIGINT)
                else:  # Windows can only end it; the last checkpoint stays
                    job.process.terminate()

    def close(self, timeout_s: float = 120.0, abort_timeout_s: float = 5.0) -> bool:
        """Ends with the server: the run saves a checkpoint, from which it can be resumed.

        Args:
            timeout_s: How long it may take to do so, in seconds.
            abort_timeout_s: How long it may take to end without, in seconds.

        Returns:
            Whether it has ended in time; otherwise it has been aborted.
        """
        self.stop()
        is_in_time = self.current is None or _ends_within(self.current.process, timeout_s)
        if self.current is not None and not is_in_time:
            self.current.process.terminate()
            if not _ends_within(self.current.process, abort_timeout_s):
                self.current.process.kill()
        self._folder.cleanup()
        return is_in_time


def _has_adapter(folder: Path) -> bool:
    try:
        return find_adapter(folder) is not None
    except GlmtuneError:
        return False


def _ends_within(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return False
    return True
