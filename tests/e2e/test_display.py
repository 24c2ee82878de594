"""Without these, a run could die because its terminal was closed or nobody reads its output any more."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import processes

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
    with processes.started(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert process.stderr.readline()
        process.stderr.close()
        process.stdout.close()
        assert process.wait(processes.HANG_S) == 0
    assert_is_complete(tmp_path / "run")


@pytest.mark.posix  # needs a pseudo-terminal
def test_a_run_under_nohup_is_finished_when_its_terminal_is_closed(tmp_path: Path) -> None:
    def begin_in_the_background() -> None:  # as nohup does, and a script's shell
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    run = tmp_path / "run"
    terminal, theirs = os.openpty()
    with processes.started(
        *TRAIN,
        f"train.output_dir={run}",
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=begin_in_the_background,
    ) as process:
        os.close(theirs)
        shown = b""
        while b"/3" not in shown:  # as the bar of three steps says; the read fails if the run ends before
            shown += os.read(terminal, 1000)
        os.close(terminal)
        for number in (signal.SIGHUP, signal.SIGINT):
            process.send_signal(number)
        assert process.wait(processes.HANG_S) == 0
    assert_is_complete(run)
    assert "loss" in (run / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()[2]
