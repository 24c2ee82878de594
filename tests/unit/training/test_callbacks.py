"""Without these, a resumed run's log could hold steps twice, and nobody see how a run is getting on."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from glmtune.training.callbacks import ProgressReport, describe_logs, make_callbacks


def test_a_line_of_progress_has_loss_rate_and_speed_and_tells_evaluation_from_training() -> None:
    logs = {"epoch": 1, "tokens_per_second": 12345.6, "learning_rate": 1e-4, "loss": 2.5}
    assert describe_logs(logs) == "loss 2.5000  lr 1.00e-04  12,346 tokens/s"
    assert describe_logs({"eval_loss": 1.0}) == "evaluation loss 1.0000"


def test_a_resumed_log_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "trainer_log.jsonl"
    file.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 3, "lo')
    arguments, control = TrainingArguments(str(tmp_path), use_cpu=True), TrainerControl()
    state = TrainerState(global_step=1, max_steps=9)
    callbacks = make_callbacks(tmp_path, None, ProgressReport(Console(file=io.StringIO())))
    for callback in callbacks:
        callback.on_train_begin(arguments, state, control)
    state.global_step = 2
    for callback in callbacks:
        callback.on_log(arguments, state, control, logs={"loss": 1.5, "grad_norm": float("nan")})
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert entries == [{"step": 1, "loss": 3}, {"step": 2, "max_steps": 9, "loss": 1.5, "grad_norm": None}]


def test_a_run_that_ends_before_the_first_log_entry_is_due_gets_one(tmp_path: Path) -> None:
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, logging_steps=10)
    callbacks = make_callbacks(tmp_path, None, ProgressReport(Console(quiet=True)))

    def logs_at(step: int, max_steps: int) -> bool:
        state, control = TrainerState(global_step=step, max_steps=max_steps, logging_steps=10), TrainerControl()
        for callback in callbacks:
            callback.on_step_end(arguments, state, control)
        return control.should_log

    assert logs_at(3, max_steps=3)
    assert not logs_at(2, max_steps=3)
    assert not logs_at(12, max_steps=12)


@pytest.mark.parametrize(("resumed_step", "kept"), [(5, [0, 5]), (0, [0])])
def test_answers_to_evaluation_questions_go_on_from_the_checkpoint(
    tmp_path: Path, resumed_step: int, kept: list[int]
) -> None:
    file = tmp_path / "eval_samples.jsonl"
    file.write_text("".join(f'{{"step": {step}, "predict": "答"}}\n' for step in (0, 5, 10)), encoding="utf-8")
    state = TrainerState(global_step=resumed_step, max_steps=9)
    for callback in make_callbacks(tmp_path, None, ProgressReport(Console(quiet=True))):
        callback.on_train_begin(TrainingArguments(str(tmp_path), use_cpu=True), state, TrainerControl())
    assert [json.loads(line)["step"] for line in file.read_text(encoding="utf-8").splitlines()] == kept


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    shown = io.StringIO()
    report = ProgressReport(Console(file=shown, force_terminal=True, width=120))
    arguments, control = TrainingArguments(str(tmp_path), use_cpu=True), TrainerControl()
    state = TrainerState(max_steps=4)
    report.on_train_begin(arguments, state, control)
    state.global_step = 2
    report.on_step_end(arguments, state, control)
    report.on_log(arguments, state, control, logs={"loss": 2.5, "tokens_per_second": 100})
    report.on_log(arguments, state, control, logs={"eval_loss": 2.0})
    report.on_train_end(arguments, state, control)
    text = shown.getvalue()
    assert "2/4" in text
    assert "loss 2.5000  100 tokens/s" in text
    assert "step 2: evaluation loss 2.0000" in text
