"""Without these, a setting copied from another tool would end in a guess that leads nowhere."""

import pytest

from glmtune.config import describe_keys, load_config
from glmtune.config.other_names import NO_SUCH_SETTING, OTHER_NAMES, OTHER_SECTIONS
from glmtune.errors import ConfigError


def fault_of(override: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("train.cutoff_len=512", "train.cutoff_len is called data.max_length here"),
        ("cutoff_len=512", "cutoff_len is called data.max_length here"),
        ("model.base_model=x", "model.base_model is called model.path here"),
        ("lora.lora_rank=8", "lora.lora_rank is called lora.r here"),
        ("train.lora_rank=8", "train.lora_rank is called lora.r here"),
        ("data.val_size=0.1", "data.val_size is called data.eval_fraction here"),
        ("train.num_epochs=3", "train.num_epochs is called train.num_train_epochs here"),
        ("max_source_length=64", "max_source_length is not a key here: use data.max_length, which counts"),
        ("train.quantization_bit=4", "model.quantize=nf4 for 4 bits"),
        ("train.flash_attn=auto", "the kind of attention is chosen"),
        ("finetuning_type=lora", "always trained with LoRA"),
        ("warmup_ratio=0.1", "use train.warmup_steps"),
        ("rank=4", "rank is not a key here: use lora.r"),
        ("training_args.max_steps=3", "the section training_args is called train here"),
    ],
)
def test_a_name_from_another_tool_leads_to_ours(override: str, meant: str) -> None:
    assert meant in fault_of(override)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("learning_rate=1e-3", "learning_rate needs its section: train.learning_rate"),
        ("lora_alpha=16", "lora_alpha needs its section: lora.lora_alpha"),
        ("max_length=64", "max_length needs its section: data.max_length"),
        ("path=x", "path needs its section: model.path / data.path"),
        ("early_stopping_patience=2", "train.early_stopping_patience"),
        ("data=train.json", "data is a section; did you mean data.path?"),
        ("model.learning_rate=1", "did you mean train.learning_rate?"),
        ("lerning_rate=1", "did you mean train.learning_rate?"),
    ],
)
def test_a_key_in_no_section_or_in_another_is_found(override: str, meant: str) -> None:
    assert meant in fault_of(override)


def test_a_key_at_the_top_of_a_file_is_found_too(tmp_path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 1e-3\nbase_model: x\ntraining_args: {max_steps: 3}\nzzz: 1\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    for meant in ("train.learning_rate", "base_model is called model.path here", "is called train here"):
        assert meant in str(caught.value)
    assert "unknown key zzz; known keys: model, data, prompt, lora, train" in str(caught.value)


@pytest.mark.parametrize("name", [*OTHER_NAMES, *NO_SUCH_SETTING])
def test_no_name_in_the_tables_is_hidden_by_a_key(name: str) -> None:
    expected = f"{name} is called {OTHER_NAMES[name]} here" if name in OTHER_NAMES else NO_SUCH_SETTING[name]
    assert expected in fault_of(f"{name}=1")


def test_every_key_in_the_table_can_be_set() -> None:
    values = {
        "lora.lora_dropout": "0.1",
        "lora.use_dora": "true",
        "train.output_dir": "x",
        "train.optim": "sgd",
        "train.lr_scheduler_type": "linear",
    }
    known = set(describe_keys())
    for key in sorted({name.partition("=")[0] for name in OTHER_NAMES.values()}):
        section, _, rest = key.partition(".")
        value = values.get(key, "[dense]" if "module" in key else "1")
        if section in ("lora", "train"):
            load_config(None, [f"{key}={value}"])
        else:
            assert f"{section}.{rest.partition('.')[0]}" in known
    assert set(OTHER_SECTIONS.values()) <= {"model", "data", "prompt", "lora", "train"}
