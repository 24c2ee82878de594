"""Without these, a misspelt or outdated setting would be ignored, or end in a traceback."""

import re
import sys
from pathlib import Path

import pytest

import processes
from glmtune.config import (
    LORA_DEFAULTS,
    TRAIN_DEFAULTS,
    RunConfig,
    describe_keys,
    embedded_config,
    load_arguments,
    load_config,
    validate_names,
)
from glmtune.config.yaml_text import parse_value
from glmtune.errors import ConfigError


def test_defaults_are_the_tutorials() -> None:
    config = load_config()
    assert config.lora == dict(LORA_DEFAULTS)
    assert config.train == dict(TRAIN_DEFAULTS)
    assert (config.model.path, config.data.path, config.prompt.system) == (None, None, None)
    assert (config.data.join, config.data.max_length, config.prompt.template) == ("\n", 512, "auto")


def test_file_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: {path: base}\nlora:\ntrain: {learning_rate: 1e-4, max_steps: 3}\n", encoding="utf-8")
    config = load_config(file, ["train.max_steps=5", "data.fields.output=answer", "lora.target_modules=[dense]"])
    assert config.model.path == "base"
    assert config.train["learning_rate"] == 1e-4
    assert config.train["max_steps"] == 5
    assert config.data.fields == {"output": "answer"}
    assert config.lora == {**LORA_DEFAULTS, "target_modules": ["dense"]}


def test_demo_is_the_demos_file_unless_there_is_one_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("demo").lora == load_config(embedded_config()).lora
    (tmp_path / "demo").write_text("lora: {r: 3}")
    assert load_config("demo").lora["r"] == 3


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "'1e-4'", "0.0001"])
def test_numbers_as_people_write_them(text: str) -> None:
    assert load_config(None, [f"train.learning_rate={text}"]).train["learning_rate"] == 1e-4


@pytest.mark.parametrize(("text", "join"), [("", ""), ("\\n", "\n"), ('"\\n\\n"', "\n\n"), ("' '", " ")])
def test_join(text: str, join: str) -> None:
    assert load_config(None, [f"data.join={text}"]).data.join == join


def test_all_faults_at_once() -> None:
    overrides = [
        "train.learning_rat=1",
        "train.logging_steps=often",
        "lora.rank=4",
        "lora.dropuot=0",
        "data.max_len=5",
        "data.max_length=long",
        "modle.path=x",
        "prompt.template=alpaca",
        "nonsense",
    ]
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    message = str(caught.value)
    for expected in (
        f"{len(overrides)} errors",
        "did you mean train.learning_rate?",
        "train.logging_steps: expected float; found 'often'",
        "lora.rank is not a key here: use lora.r",
        "did you mean lora.lora_dropout?",
        "did you mean data.max_length?",
        "data.max_length: input should be a valid integer",
        "did you mean model?",
        "'chatglm2' or 'tutorial'",
        "'nonsense' is not an override",
    ):
        assert expected in message


@pytest.mark.parametrize("key", ["lora.r", "lora.lora_dropout", "train.learning_rate", "train.save_total_limit"])
def test_true_and_false_are_no_numbers(key: str) -> None:
    """They would silently stand for 1 and 0."""
    for value in ("true", "false"):
        with pytest.raises(ConfigError, match=f"{key}: expected (int|float); found {value.title()}"):
            load_config(None, [f"{key}={value}"])


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("evaluation_strategy", "train.eval_strategy"),
        ("warmup_ratio", "train.warmup_steps"),
        ("no_cuda", "train.use_cpu"),
        ("per_gpu_train_batch_size", "train.per_device_train_batch_size"),
        ("group_by_length", "train.train_sampling_strategy=group_by_length"),
        ("overwrite_output_dir", "never overwritten"),
        ("logging_dir", "TENSORBOARD_LOGGING_DIR"),
        ("activation_checkpointing", "train.gradient_checkpointing"),
    ],
)
def test_names_of_older_transformers(key: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=f"train.{key} is not a key here") as caught:
        load_config(None, [f"train.{key}=1"])
    assert advice in str(caught.value)


def test_replaced_names_are_not_in_transformers_any_more() -> None:
    from transformers import TrainingArguments

    from glmtune.config.replaced_keys import REPLACED_TRAIN_KEYS

    known = set(TrainingArguments.__dataclass_fields__)
    still_there = known & set(REPLACED_TRAIN_KEYS)
    assert still_there <= {"activation_checkpointing", "activation_checkpointing_kwargs"}


def test_names_of_the_tutorial_are_known() -> None:
    names = ["lora.task_type=CAUSAL_LM", "lora.inference_mode=false", "train.gradient_checkpointing=false"]
    config = load_config(None, names)
    assert (config.lora["task_type"], config.lora["inference_mode"]) == ("CAUSAL_LM", False)
    assert config.train["gradient_checkpointing"] is False


def test_nan_filter_cannot_be_switched_on() -> None:
    with pytest.raises(ConfigError, match="hides NaN"):
        load_config(None, ["train.logging_nan_inf_filter=true"])


@pytest.mark.parametrize(
    "override", ["label_smoothing_factor=0.1", "neftune_noise_alpha=5", "auto_find_batch_size=true"]
)
def test_what_packed_rows_do_not_support_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="Leave it out"):
        load_config(None, [f"train.{override}"])
    load_config(None, ["train.label_smoothing_factor=0", "train.auto_find_batch_size=false"])


@pytest.mark.parametrize(
    "override",
    [
        "fsdp=full_shard auto_wrap",
        "fsdp=true",
        "fsdp_config={version: 2}",
        "deepspeed=x.json",
        "parallelism_config={a: 1}",
    ],
)
def test_spreading_the_model_over_gpus_is_refused_with_what_to_do_instead(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"train.{override}"])
    assert f"train.{override.partition('=')[0]} spreads a model over GPUs" in str(caught.value)
    assert "model.quantize=nf4" in str(caught.value)
    assert "torchrun" in str(caught.value)


def test_validate_names_of_a_config_made_in_python() -> None:
    with pytest.raises(ConfigError, match=r"did you mean train\.max_steps"):
        validate_names(RunConfig(train={"max_step": 3}))


def test_text_in_a_config_made_in_python_counts_as_the_number_that_it_stands_for() -> None:
    config = validate_names(RunConfig(train={"per_device_train_batch_size": "4"}, lora={"r": "16"}))
    assert (config.train["per_device_train_batch_size"], config.lora["r"]) == (4, 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "expected sections"),
        ("model: {\n", "not YAML"),
        ("train: {max_steps: 1, max_steps: 2}\n", 'run.yaml: "max_steps" is given twice, in line 1 and in line 1'),
        ("train:\n  max_steps: 1\n  seed: 2\n  max_steps: 2\n", "twice, in line 2 and in line 4"),
        ("train: {seed: 1}\ndata: {}\ntrain: {seed: 1}\n", '"train" is given twice, in line 1 and in line 3'),
        ("model: base\n", "model: input should be a valid dictionary"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(file)


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.max_steps=1", "train.max_steps=2"],
        ["data.fields.output=a", "data.fields={instruction: b}"],
        ["data.fields={output: a}", "data.fields.output=b"],
    ],
)
def test_a_key_given_twice_is_not_settled_in_silence(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{overrides[0]} and {overrides[1]}: both set the same key")):
        load_config(None, [overrides[0], "train.seed=1", overrides[1]])


def test_an_override_goes_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("train: {max_steps: 1, seed: 3}")
    train = load_config(tmp_path / "run.yaml", ["train.max_steps=2", "train.max_grad_norm=1"]).train
    assert (train["max_steps"], train["seed"]) == (2, 3)


def test_python_and_the_command_line_take_an_override_without_a_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("train: {max_steps: 1}")
    for arguments in (["train.max_steps=1"], [str(tmp_path / "run.yaml")], [tmp_path / "run.yaml", "train.seed=1"]):
        assert load_arguments(arguments).train["max_steps"] == 1
    assert load_arguments([]) == load_config()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")


def test_command_replaces_what_it_repeats() -> None:
    config = load_config(None, ["train.max_steps=5", "prompt.system=a b", "train.resume_from_checkpoint=false"])
    command = config.command("train.resume_from_checkpoint=true")
    assert command == "glmtune train train.max_steps=5 'prompt.system=a b' train.resume_from_checkpoint=true"


def test_every_own_key_is_described() -> None:
    described = {key: text for key, (_, text) in describe_keys().items()}
    assert all(described.values())
    for section, defaults in (("lora", LORA_DEFAULTS), ("train", TRAIN_DEFAULTS)):
        assert {f"{section}.{key}" for key in defaults} <= described.keys()


def test_importing_is_cheap() -> None:
    code = "import sys, glmtune.config; print({'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules))"
    assert processes.run(sys.executable, "-c", code).stdout == "set()\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("FALSE", False),
        ("tRue", True),
        ("2024-13-45", "2024-13-45"),
        ("1e-1", 0.1),
        ("[1, true]", [1, True]),
        ("", None),
        ("*.json", "*.json"),
        ("*", "*"),
    ],
)
def test_values(text: str, value: object) -> None:
    found = parse_value(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["[", "!!timestamp 2024-13-45", "!!bool maybe", "!!int", "[" * 5000, "\udcc4"])
def test_values_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_value(text)
    assert repr(text)[:60] in str(caught.value)
    assert len(str(caught.value)) < 200


def test_words_that_yaml_once_took_for_booleans(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train: {eval_strategy: no, run_name: 2024-13-45}\n", encoding="utf-8")
    train = load_config(file, ["train.save_strategy=no", "train.bf16=no", "train.disable_tqdm=yes"]).train
    assert (train["eval_strategy"], train["save_strategy"], train["run_name"]) == ("no", "no", "2024-13-45")
    assert (train["bf16"], train["disable_tqdm"]) == (False, True)
    file.write_text("model: !!timestamp 2024-13-45\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(file)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.output_dir=", "output_dir is empty; is a shell variable unset"),
        ("train.output_dir=''", "output_dir: expected a folder"),
        ("train.per_device_train_batch_size=0", "per_device_train_batch_size: expected at least 1; found 0"),
        ("train.per_device_train_batch_size=", "per_device_train_batch_size is empty; is a shell variable unset"),
        ("train.gradient_accumulation_steps=0", "gradient_accumulation_steps: expected at least 1; found 0"),
        ("train.save_steps=99999999999", "above 0 and at most 1,000,000,000; found 99999999999"),
        ("lora.r=99999999999", "lora.r: expected at least 1 and at most 1,000,000,000; found 99999999999"),
        ("train.learning_rate=.inf", "learning_rate: expected at least 0 and at most 1,000,000,000; found inf"),
        ("train.seed=4294967296", "seed: expected at least 0 and at most 4,294,967,295; found 4294967296"),
        ("train.logging_steps=0", "logging_steps: expected a number above 0; found 0"),
        ("lora.inference_mode=true", "lora.inference_mode freezes the adapter"),
        ("prompt.system=\udcc4\udce3", "not UTF-8"),
    ],
)
def test_values_out_of_range(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(None, [override])
    str(caught.value).encode()


@pytest.mark.parametrize("key", ["model.path", "data.path", "data.eval_path", "model.adapter_path", "train.output_dir"])
@pytest.mark.parametrize("text", ["", " ", "''", "[]", "['']"])
def test_a_path_from_an_unset_variable_is_never_the_toy(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        load_config(None, [f"{key}={text}"])


@pytest.mark.parametrize("key", ["model.path", "data.path", "data.eval_path", "model.adapter_path"])
def test_null_chooses_the_built_in_base_and_data_whatever_the_file_has(tmp_path: Path, key: str) -> None:
    section, _, name = key.partition(".")
    file = tmp_path / "run.yaml"
    file.write_text(f"{section}: {{{name}: ./somewhere}}\n", encoding="utf-8")
    assert getattr(getattr(load_config(file, [f"{key}=null"]), section), name) is None


def test_a_path_left_empty_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: {path: }\ndata: {path: ''}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"2 errors(.|\n)*data\.path(.|\n)*empty"):
        load_config(file)


def test_what_may_be_empty() -> None:
    config = load_config(None, ["prompt.system=", "data.join="])
    assert (config.prompt.system, config.data.join) == (None, "")


@pytest.mark.parametrize(
    "override",
    [
        "train.seed=-1",
        "train.seed=4294967296",
        "train.data_seed=-1",
        "train.learning_rate=-1",
        "train.learning_rate=.nan",
        "train.learning_rate=.inf",
        "train.weight_decay=-1",
        "train.adam_beta1=1",
        "train.max_grad_norm=-1",
        "train.num_train_epochs=1e300",
        "train.max_steps=99999999999999999999",
        "train.log_level=foo",
        "train.train_sampling_strategy=foo",
        "train.lr_scheduler_type=zigzag",
        "train.optim_args=fast",
        "train.deepspeed=1",  # which would be read as an open file, and close it
        "train.accelerator_config=foo",
        "train.fsdp_config=[1]",
        "train.report_to=-1",
        "train.gradient_checkpointing_kwargs=foo",
        "train.use_liger_kernel=true",
        "train.output_dir=~nosuchuser/x",
        "model.path=~nosuchuser/x",
        "lora.lora_dropout=.nan",
        "lora.lora_dropout=-1",
        "lora.lora_dropout=1",
        "lora.r=0",
        "lora.lora_alpha=-8",
        "lora.bias=some",
        "lora.rank_pattern=3",
    ],
)
def test_values_that_cannot_be_are_named_before_anything_begins(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0].replace(".", r"\.")):
        load_config(None, [override])


@pytest.mark.parametrize(("text", "steps"), [("010", 10), ("1e0", 1), ("0010", 10), ("7", 7)])
def test_numbers_of_steps_mean_what_they_look_like(text: str, steps: int) -> None:
    found = load_config(None, [f"train.max_steps={text}"]).train["max_steps"]
    assert (found, type(found)) == (steps, int)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\ntrain: {max_steps: *c}\n",
        "train: &t {run_name: *t}\n",
        "model: &m {path: x}\ndata: {<<: *m}\n",
    ],
)
def test_aliases_neither_hang_nor_fill_the_memory(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="is an alias; write the value itself"):
        load_config(file)
