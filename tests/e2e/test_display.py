"""Nobody needs to watch a run: it goes on when its terminal is closed or the reader of its output has gone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TRAIN = [
    str(Path(sys.executable).with_name("glmtune")),
    "train",
    "train.use_cpu=true",
    "train.max_steps=3",
    "train.logging_steps=1",
    "train.save_steps=100",
]


def assert_is_complete(run: Path) -> None:
    assert {"adapter_model.safetensors", "all_results.json", "training_loss.png"} <= {
        file.name for file in run.iterdir()
    }


def test_a_run_whose_output_nobody_reads_any_more_is_finished(tmp_path: Path) -> None:
    command = [*TRAIN, f"train.output_dir={tmp_path / 'run'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert process.stderr.readline()
        process.stderr.close()
        process.stdout.close()
        assert process.wait(timeout=240) == 0
    assert_is_complete(tmp_path / "run")


@pytest.mark.posix  # needs a pseudo-terminal
def test_a_run_under_nohup_is_finished_when_its_terminal_is_closed(tmp_path: Path) -> None:
    def begin_in_the_background() -> None:  # as nohup does, and a script's shell
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    run = tmp_path / "run"
    terminal, theirs = os.openpty()
    with subprocess.Popen(
        [*TRAIN, f"train.output_dir={run}"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=begin_in_the_background,
    ) as process:
        os.close(theirs)
        assert os.read(terminal, 1000)
        deadline = time.monotonic() + 120
        while not (run / "trainer_log.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.close(terminal)
        for number in (signal.SIGHUP, signal.SIGINT):
            process.send_signal(number)
        assert process.wait(timeout=240) == 0
    assert_is_complete(run)
    assert "loss" in (run / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()[2]
