"""Without this, the tutorial's own data set could no longer be trained on from start to finish."""

import json
import warnings
from pathlib import Path

import pytest

import glmtune
from glmtune.data.conversion.convert import convert_file
from glmtune.report.write import write_report


@pytest.mark.real_data
def test_every_row_trains(real_data: Path, tmp_path: Path) -> None:
    data, run = real_data / "data" / "huanhuan.json", tmp_path / "run"
    num_rows = len(json.loads(data.read_text(encoding="utf-8")))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = glmtune.train(
            None,
            f"data.path={data}",
            "prompt.system=现在你要扮演皇帝身边的女人--甄嬛",
            f"train.output_dir={run}",
            "train.max_steps=30",
            "train.logging_steps=5",
            "train.learning_rate=2e-3",
            "train.gradient_checkpointing=false",
        )
    assert result.metrics["data"]["num_samples"] == num_rows == 3729
    assert result.last_loss < result.first_loss - 0.5
    model, tokenizer = glmtune.load(run)
    chat = glmtune.Chat(model, tokenizer, max_new_tokens=24)
    assert chat.system == "现在你要扮演皇帝身边的女人--甄嬛"
    assert chat.ask("皇上驾到！")
    evaluation = glmtune.evaluate(run, data, count=40, general=True)
    assert evaluation.num_rows_in_files == num_rows
    assert evaluation.candidates[1].differences["data"]["loss"].high < 0, "the run has learnt how these people speak"
    text = write_report([run]).with_suffix(".md").read_text(encoding="utf-8")
    assert "40 of 3,729 rows" in text
    assert "General questions: 50" in text


@pytest.mark.real_data
def test_every_row_is_converted_both_ways_or_kept(real_data: Path, tmp_path: Path) -> None:
    data, there, back = real_data / "data" / "huanhuan.json", tmp_path / "instruction.json", tmp_path / "qa.json"
    report = convert_file(data, there, "instruction")
    again = convert_file(there, back, "qa")
    rows, converted, returned = (json.loads(path.read_text(encoding="utf-8")) for path in (data, there, back))
    assert report.num_rows == len(rows) == len(converted) == len(returned) == 3729
    changed = [number for number, row in enumerate(rows) if converted[number] != row]
    assert len(changed) == report.converted.total() == again.converted.total()
    assert [row["output"] for row in returned] == [row["output"] for row in rows]
    assert [row for number, row in enumerate(returned) if number not in changed] == [
        row for number, row in enumerate(rows) if number not in changed
    ]
    assert report.converted.total() < 10, "these are lines of a play, few of which ask for anything"
