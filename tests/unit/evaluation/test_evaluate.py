"""Without these, nobody could tell whether a run is better than its base, or would be told something else than
training said."""

import json
import math
import shutil
from pathlib import Path

import numpy
import pytest

import glmtune
from glmtune.data.packing import LossWeight
from glmtune.errors import ConfigError, ModelError
from glmtune.evaluation.evaluate import evaluate
from glmtune.evaluation.losses import loss_measures
from glmtune.evaluation.rows import general_rows

from .conftest import Trained


@pytest.fixture(scope="module")
def evaluated(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run that has been evaluated, beside a second one."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(trained.run, run)
    evaluate(run, trained.eval_data, general=True, max_new_tokens=4)
    return run


def test_the_loss_is_that_of_training(trained: Trained, evaluated: Path) -> None:
    result = json.loads((evaluated / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    base, run = result["candidates"]
    loss = run["metrics"]["data"]["loss"]
    assert loss == pytest.approx(trained.result.metrics["eval_loss"], abs=2e-5)
    assert base["metrics"]["data"]["loss"] > loss
    assert result["num_rows"] == {"data": 8, "general": len(general_rows())}


@pytest.mark.parametrize(("weight", "loss"), [("token", 5 / 3), ("sample", 1.5)])
def test_the_perplexity_is_over_tokens_whatever_the_loss_is_over(weight: LossWeight, loss: float) -> None:
    """Two samples: one of two tokens with 4 nats, one of a token with 1."""
    measures = loss_measures(numpy.asarray([[4.0, 2.0], [1.0, 1.0], [0.0, 0.0]]), weight)
    assert measures["loss"].value == pytest.approx(loss)
    assert measures["perplexity"].value == pytest.approx(math.exp(5 / 3))


def test_differences_are_from_the_base_and_have_intervals(evaluated: Path) -> None:
    result = json.loads((evaluated / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    base, run = result["candidates"]
    assert run["compared_with"] == base["name"] == "base"
    for section in ("data", "general"):
        found = run["differences"][section]["loss"]
        assert found["value"] == pytest.approx(run["metrics"][section]["loss"] - base["metrics"][section]["loss"])
        assert found["low"] <= found["value"] <= found["high"]


def test_predictions_have_the_names_that_the_field_uses(trained: Trained, evaluated: Path) -> None:
    lines = (evaluated / "evaluation" / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    asked = json.loads(trained.eval_data.read_text(encoding="utf-8"))
    assert [row.keys() for row in rows] == [{"prompt", "label", "predict"}] * 8
    assert [(row["prompt"], row["label"]) for row in rows] == [(row["instruction"], row["output"]) for row in asked]
    assert (evaluated / "evaluation" / "base_generated_predictions.jsonl").is_file()


def test_the_answers_are_those_of_chat(trained: Trained, evaluated: Path) -> None:
    lines = (evaluated / "evaluation" / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(lines[0])
    model, tokenizer = glmtune.load(trained.run)
    assert first["predict"] == glmtune.Chat(model, tokenizer, max_new_tokens=4).ask(first["prompt"])
    with model.disable_adapter():
        answer = glmtune.Chat(model, tokenizer, max_new_tokens=4).ask(first["prompt"])
    of_base = (evaluated / "evaluation" / "base_generated_predictions.jsonl").read_text(encoding="utf-8")
    assert json.loads(of_base.splitlines()[0])["predict"] == answer


def test_several_runs_stand_in_one_table_with_one_base(trained: Trained, tmp_path: Path) -> None:
    checkpoint = trained.run / "checkpoint-2"
    options = {"generate": False, "output": tmp_path / "both", "count": 5}
    found = glmtune.evaluate([trained.run, checkpoint], trained.eval_data, **options)
    assert [each.name for each in found.candidates] == ["base", "run", "run/checkpoint-2"]
    assert found.metrics("run") == found.metrics("run/checkpoint-2")
    assert found.num_rows == {"data": 5}
    assert found.candidates[1].differences["data"]["loss"].is_clear
    assert [file.name for file in (tmp_path / "both").iterdir()] == ["evaluation.json"]


def test_a_base_is_evaluated_alone(trained: Trained, tmp_path: Path, tiny_base: Path) -> None:
    choices = Path(__file__).parent / "choices" / "mmlu.csv"
    found = evaluate(tiny_base, choices=choices, output=tmp_path)
    assert [each.compared_with for each in found.candidates] == [None]
    assert found.metrics(tiny_base.name, "mmlu.csv")["accuracy"] in [100 * n / 6 for n in range(7)]


def test_what_cannot_be_evaluated_is_said(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to evaluate on"):
        evaluate(trained.run)
    with pytest.raises(ConfigError, match="--count"):
        evaluate(trained.run, trained.data, count=0)
    with pytest.raises(ModelError, match="does not exist"):
        evaluate(tmp_path / "nowhere", trained.data)


def test_evaluation_in_training_answers_questions_and_logs_their_metrics(trained: Trained) -> None:
    log = [json.loads(line) for line in (trained.run / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]
    (entry,) = [each for each in log if "eval_loss" in each]
    assert {"eval_rouge-1", "eval_rouge-2", "eval_rouge-l", "eval_bleu-4", "eval_exact_match"} < entry.keys()
    assert {"eval_distinct-1", "eval_ended", "eval_length", "eval_repetition"} < entry.keys()
    samples = (trained.run / "eval_samples.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in samples]
    asked = json.loads(trained.eval_data.read_text(encoding="utf-8"))[:3]
    assert [(row["step"], row["prompt"], row["label"]) for row in rows] == [
        (step, row["instruction"], row["output"]) for step in (0, 2) for row in asked
    ]


def test_general_questions_are_in_both_languages_and_have_short_answers() -> None:
    rows = general_rows()
    assert 40 <= len(rows) <= 60
    assert len({row.question for row in rows}) == len(rows)
    chinese = [row for row in rows if any("\u4e00" <= letter <= "\u9fff" for letter in row.question)]
    assert 15 <= len(chinese) <= len(rows) - 15
    assert all(0 < len(row.label) <= 20 for row in rows)
