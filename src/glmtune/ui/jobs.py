"""Training runs that are started from the page, each in a process of its own."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from glmtune.adapters.run_folder import LOG_NAME
from glmtune.config.yaml_text import parse_value
from glmtune.errors import ConfigError, TrainingError
from glmtune.language import Language

State = Literal["running", "stopping", "finished", "stopped", "failed"]
_INTERRUPTED = 130
_MOST_LINES = 12


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

    @property
    def state(self) -> State:
        """How it is going."""
        code = self.process.poll()
        if code is None:
            return "stopping" if self.is_stopping else "running"
        return "finished" if code == 0 else "stopped" if code == _INTERRUPTED else "failed"

    def last_lines(self) -> str:
        """The end of what it has printed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
        return "\n".join([line for line in lines if line.strip()][-_MOST_LINES:])

    def progress(self) -> list[dict[str, Any]]:
        """The entries of its log that have a loss."""
        file = self.folder / LOG_NAME
        if not file.is_file():
            return []
        entries = []
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # a line that is being written
                continue
            if entry.get("loss") is not None:  # it was not a number
                entries.append(entry)
        return entries


def setting(key: str, text: str) -> str:
    """A text as a setting of the command line: in quotes where YAML would read something else."""
    try:
        is_read_as_it_is = parse_value(text) == text
    except ConfigError:
        is_read_as_it_is = False
    return f"{key}={text if is_read_as_it_is else json.dumps(text, ensure_ascii=False)}"


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

    def start(self, arguments: Sequence[str], folder: Path, language: Language) -> Job:
        """Starts a run.

        Args:
            arguments: As for `glmtune train`.
            folder: The run folder that they name.
            language: The language of what it prints.

        Raises:
            TrainingError: One is still running.
        """
        if self.current is not None and self.current.process.poll() is None:
            raise TrainingError("a run that was started from the page still trains; stop it first")
        log = Path(tempfile.mkdtemp(prefix="glmtune-")) / "train.log"
        environment = {**os.environ, "GLMTUNE_LANG": language, "PYTHONUNBUFFERED": "1"}
        environment.pop("GLMTUNE_API_KEY", None)
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
        job = self.current
        if job is not None and job.state == "running":  # a second signal would abort what the first has asked for
            job.is_stopping = True
            job.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """Ends with the server: the run saves a checkpoint, from which it can be resumed."""
        self.stop()
        if self.current is not None:
            self.current.process.wait()
