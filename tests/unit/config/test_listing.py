"""Without these, `glmtune train --keys` could leave out a key that people look for, or state another default."""

from peft import LoraConfig
from transformers import TrainingArguments

from glmtune.config import OFTEN_SET, describe_keys, grouped_keys, load_config, validate_names


def test_every_usual_key_is_in_one_topic() -> None:
    listed = [key for keys in grouped_keys().values() for key in keys]
    assert sorted(listed) == sorted([*describe_keys(), *OFTEN_SET])
    for key in ("train.lr_scheduler_type", "train.warmup_steps", "train.seed", "train.resume_from_checkpoint"):
        assert key in listed


def test_defaults_are_those_of_peft_and_transformers() -> None:
    for key, (default, _) in OFTEN_SET.items():
        section, _, name = key.partition(".")
        field = (LoraConfig if section == "lora" else TrainingArguments).__dataclass_fields__[name]
        if key != "train.per_device_eval_batch_size":  # ours is that of training
            assert getattr(field.default, "value", field.default) == default, key


def test_all_checkpoints_can_be_kept() -> None:
    assert load_config().train["save_total_limit"] == 2
    for value in ("null", "none", "all"):
        config = validate_names(load_config(None, [f"train.save_total_limit={value}"]))
        assert config.train["save_total_limit"] is None
