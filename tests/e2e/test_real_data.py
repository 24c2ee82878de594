"""Without this, the tutorial's own data set could no longer be trained on from start to finish."""

import json
import warnings
from pathlib import Path

import pytest

import glmtune


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
