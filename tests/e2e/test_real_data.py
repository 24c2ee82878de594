"""Without this, the tutorial's own data set could no longer be trained on from start to finish."""

import json
import re
import warnings
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

import glmtune
from glmtune.data.conversion.convert import convert_file
from glmtune.models.chatglm import ChatGLMTokenizer
from glmtune.models.chatglm.plain_files import write_plain_files
from glmtune.report.write import write_report
from hard_texts import hard_texts, texts_with_special_tokens


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
    num_converted = convert_file(data, there, "instruction")
    num_returned = convert_file(there, back, "qa")
    rows, converted, returned = (json.loads(path.read_text(encoding="utf-8")) for path in (data, there, back))
    assert len(rows) == len(converted) == len(returned) == 3729
    changed = [number for number, row in enumerate(rows) if converted[number] != row]
    assert len(changed) == num_converted == num_returned
    assert [row["output"] for row in returned] == [row["output"] for row in rows]
    assert [row for number, row in enumerate(returned) if number not in changed] == [
        row for number, row in enumerate(rows) if number not in changed
    ]
    assert num_converted < 10, "these are lines of a play, few of which ask for anything"


@pytest.mark.real_data
def test_plain_transformers_tokenises_as_the_published_tokenizer(real_data: Path, tmp_path: Path) -> None:
    reference = real_data / "reference" / "chatglm3-6b"
    for name in ("tokenizer.model", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((reference / name).read_bytes())
    tokenizer = ChatGLMTokenizer.from_pretrained(tmp_path)
    write_plain_files(tmp_path, tokenizer, "chatglm3", None)
    plain = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    rows = json.loads((real_data / "data" / "huanhuan.json").read_text(encoding="utf-8"))
    texts = [row[key] for row in rows for key in ("instruction", "input", "output")] + hard_texts(500)
    different = [text for text in texts if plain.encode(text) != tokenizer.encode(text)]
    assert all(re.search(r"\b[se]op\b", text) for text in different), different
    assert len(different) < 20
    spelt = texts_with_special_tokens(500)
    unparsed = [plain.encode(text, add_special_tokens=False, split_special_tokens=True) for text in spelt]
    assert unparsed == [tokenizer.encode_text(text) for text in spelt]
