"""Without these, a merged or retrained model could be asked with another prompt than it was trained with."""

from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from glmtune.adapters.inheritance import prompt_record
from glmtune.adapters.run_folder import RunManifest
from glmtune.config import embedded_base, load_config
from glmtune.export.merge import merge
from glmtune.loading.bases import load_tokenizer
from glmtune.loading.runs import load


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that a run with the tutorial's template was merged into."""
    folder = tmp_path_factory.mktemp("merged")
    adapter = stock_adapter(embedded_base(), folder / "adapter")
    config = load_config(None, ["data.join="]).model_dump(mode="json")
    RunManifest(str(embedded_base()), template="tutorial", system="你是猫", config=config).write(adapter)
    merge(adapter, folder / "model")
    return folder / "model"


def stock_adapter(base: Path, folder: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(target_modules=["query_key_value"], task_type="CAUSAL_LM")).save_pretrained(folder)
    return folder


def test_a_prompt_is_not_lost_on_merging_twice(merged: Path, tmp_path: Path) -> None:
    adapter = stock_adapter(merged, tmp_path / "adapter")
    merge(adapter, tmp_path / "twice")
    expected = ("tutorial", "你是猫", "")
    for path in (merged, adapter, tmp_path / "twice"):
        loaded = load(path, device_map="cpu")
        assert (loaded.template, loaded.system, loaded.join) == expected, path


def test_training_goes_by_the_same_rule(merged: Path) -> None:
    from glmtune.planning.start import read_start

    def resolved(*overrides: str) -> tuple[str, str | None, str]:
        config = read_start(load_config(None, [f"model.path={merged}", *overrides]), may_overwrite=True).config
        return config.prompt.template, config.prompt.system, config.data.join

    assert resolved() == ("tutorial", "你是猫", "")
    assert resolved("prompt.template=chatglm3", "prompt.system=", "data.join=x") == ("chatglm3", None, "x")
    assert prompt_record(None, None, load_tokenizer(embedded_base())) == ("chatglm3", None, "\n")
