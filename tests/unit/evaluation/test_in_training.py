"""Without these, evaluation in training would answer other questions than are logged, or fail the run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glmtune.data.formats import read_conversations
from glmtune.errors import ModelError
from glmtune.evaluation import in_training
from glmtune.evaluation.in_training import EvaluationQuestions
from glmtune.loading.runs import Loaded, load

from .conftest import Trained


@pytest.fixture(scope="module")
def loaded(trained: Trained) -> Loaded:
    return load(trained.run)


@pytest.fixture
def questions(trained: Trained, loaded: Loaded, tmp_path: Path) -> EvaluationQuestions:
    conversations = read_conversations(trained.eval_data).items[:3]
    return EvaluationQuestions.of(conversations, loaded.tokenizer, loaded.template, loaded.system, folder=tmp_path)


def written(questions: EvaluationQuestions) -> list[dict[str, Any]]:
    lines = (questions.folder / "eval_samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_processes_share_the_questions(questions: EvaluationQuestions, loaded: Loaded) -> None:
    shares: list[Any] = []
    for process in (1, 0):
        own = replace(questions, process=process, num_processes=2)
        shared, answers = own.ask(loaded.model, 0, lambda answers: shares.extend(answers) or list(shares))
    assert sorted(index for index, _ in shares) == [0, 1, 2]
    before = written(questions)
    assert [row["prompt"] for row in before] == [row.question for row in questions.rows]
    assert [answer.prompt for answer in answers] == [row.question for row in questions.rows]
    assert questions.ask(loaded.model, 0, list) == (shared, answers)
    assert written(questions) == before


def test_a_model_that_cannot_answer_does_not_fail_the_run(
    questions: EvaluationQuestions, loaded: Loaded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ModelError("out of memory")

    monkeypatch.setattr(in_training, "answer_rows", fail)
    assert questions.ask(loaded.model, 1, list) == ({}, [])
    assert "could not be answered: out of memory" in caplog.text
