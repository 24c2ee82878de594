"""Without these, a run could be planned for memory that it does not have, or not say what would fit."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from glmtune.adapters.run_folder import RunManifest
from glmtune.config import RunConfig, load_config
from glmtune.data.packing import PackingCollator
from glmtune.data.run_data import load_run_data
from glmtune.errors import AdapterError, ConfigError, ModelError, TrainingError
from glmtune.export.merge import merge
from glmtune.loading.bases import load_base, load_tokenizer
from glmtune.loading.runs import load
from glmtune.models.chatglm import ChatGLMConfig
from glmtune.planning import device as device_module
from glmtune.planning import plan as plan_module
from glmtune.planning import planned as planned_module
from glmtune.planning.card import plan_for_card
from glmtune.planning.device import KnownDevice
from glmtune.planning.memory import MemorySettings
from glmtune.planning.plan import plan_run
from glmtune.planning.planned import PlannedRun
from glmtune.planning.report import print_plan
from glmtune.planning.settings import as_before, spell, with_settings
from glmtune.planning.speed import DeviceSpeed
from glmtune.training import run as trainer_module
from glmtune.training.lora_trainer import LoraTrainer
from glmtune.training.run import TrainResult

Configure = Callable[..., RunConfig]


@pytest.fixture
def configure(tiny_base: Path, data_file: Path, tmp_path: Path) -> Configure:
    """A run of ChatGLM3-6B's shape: there are no weights in its folder, and none are needed."""
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_base / name).read_bytes())
    ChatGLMConfig(multi_query_attention=True, multi_query_group_num=2, add_qkv_bias=True).save_pretrained(folder)

    def configure(*overrides: str) -> RunConfig:
        return load_config(
            None, [f"model.path={folder}", f"data.path={data_file}", "prompt.template=chatglm3", *overrides]
        )

    return configure


@pytest.fixture
def plan(configure: Configure) -> Callable[..., PlannedRun]:
    def plan(*overrides: str, gib: float | None = None) -> PlannedRun:
        return plan_for_card(configure(*overrides), gib, None)[1]

    return plan


def card(gib: float | None = None, kind: str | None = None) -> KnownDevice:
    """A device with so much free memory; none that is here, unless a kind is named."""
    device = None if kind is None else torch.device(kind)
    free = None if gib is None else gib * 2**30
    return KnownDevice(device, torch.bfloat16, free, DeviceSpeed.assumed())


def test_small_cards(plan: Callable[..., PlannedRun]) -> None:
    formats = {gib: plan(gib=gib).chosen.settings.quantize for gib in (6, 12, 16, 24)}
    assert formats == {6: "nf4", 12: "int8", 16: "none", 24: "none"}
    assert all(plan(gib=gib).fits for gib in (6, 12, 16, 24))
    assert plan(gib=16).chosen.settings.num_checkpointed == 0


def test_a_card_that_cannot(plan: Callable[..., PlannedRun]) -> None:
    planned = plan(gib=4)
    assert not planned.fits
    with pytest.raises(TrainingError, match=r"needs at least 3\.\d GiB, and 3\.4 GiB are free.*smallest card.*5 GiB"):
        planned.check()


def test_what_would_fit_instead_of_what_was_asked(plan: Callable[..., PlannedRun]) -> None:
    planned = plan("model.quantize=none", gib=8)
    with pytest.raises(TrainingError, match=r"These settings would fit: model\.quantize=int8") as caught:
        planned.check()
    settings = str(caught.value).partition("would fit: ")[2].partition("\n")[0].split()
    assert plan(*settings, gib=8).fits


def test_the_settings_printed_are_the_settings_planned(plan: Callable[..., PlannedRun]) -> None:
    for gib in (6, 7, 12, 16, 40):
        planned = plan(gib=gib)
        again = plan(*spell(planned.chosen), gib=gib)
        assert again.chosen == planned.chosen


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.quantize=nf4", {"quantize": "nf4"}),
        ("model.offload_embedding=true", {"offloads_embedding": True}),
        ("train.gradient_checkpointing=true", {"num_checkpointed": 28}),
        ("train.gradient_checkpointing=9", {"num_checkpointed": 9}),
        ("train.gradient_checkpointing=99", {"num_checkpointed": 28}),
        ("train.gradient_checkpointing=false", {"num_checkpointed": 0}),
        ("train.cuda_graphs=true", {"uses_graphs": True}),
        ("train.offload_checkpoints=true", {"offloads_checkpoints": True}),
    ],
)
def test_what_the_user_decided_stays(
    plan: Callable[..., PlannedRun], configure: Configure, override: str, expected: dict[str, Any]
) -> None:
    chosen = plan(override, gib=40).chosen.settings
    assert {name: getattr(chosen, name) for name in expected} == expected
    if "graphs" not in override:  # which the CPU has none of
        config = configure(override)
        data = load_run_data(config, load_tokenizer(config.model.path or ""), 0)
        settings = plan_run(config, data.train, card(kind="cpu")).settings
        assert {name: getattr(settings, name) for name in expected} == expected


def test_settings_that_contradict_each_other(plan: Callable[..., PlannedRun]) -> None:
    with pytest.raises(ConfigError, match=r"cuda_graphs=true cannot be used with train\.offload_checkpoints"):
        plan("train.cuda_graphs=true", "train.offload_checkpoints=true")
    with pytest.raises(ConfigError, match=r"offload_checkpoints=true is not possible"):
        plan("lora.use_dora=true", "train.offload_checkpoints=true")
    with pytest.raises(ConfigError, match=r"lora\.use_dora cannot be used with model\.quantize=nf4"):
        plan("lora.use_dora=true", "model.quantize=nf4")
    with pytest.raises(AdapterError, match="matches nothing"):
        plan("lora.target_modules=[q_proj]")


def test_what_cannot_be_quantised_is_not(plan: Callable[..., PlannedRun]) -> None:
    planned = plan("lora.use_dora=true", gib=8)
    assert planned.chosen.settings.quantize == "none"
    with pytest.raises(TrainingError, match=r"(?s)does not fit.*cannot be fused.*cannot be quantised: lora\.use_dora"):
        planned.check()


def test_what_else_there_is_to_know(plan: Callable[..., PlannedRun]) -> None:
    assert plan(gib=24).notes == plan(gib=40).notes
    assert "prefixes that samples have in common" in plan(gib=24).notes[0]
    assert "Hopper" in plan("model.quantize=fp8", gib=24).notes[0]
    assert "below the longest sample" in plan("train.max_tokens_per_device=9", gib=24).notes[0]
    assert plan("train.max_tokens_per_device=100", gib=80).chosen.step.largest.num_tokens <= 192


def test_pissa_is_planned_without_weights(plan: Callable[..., PlannedRun]) -> None:
    assert plan("lora.init_lora_weights=pissa", gib=24).fits


def test_without_bitsandbytes_nothing_is_quantised(
    plan: Callable[..., PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "has_bitsandbytes", lambda: False)
    monkeypatch.setattr(planned_module, "has_bitsandbytes", lambda: False)
    planned = plan(gib=8)
    assert planned.chosen.settings.quantize == "none"
    with pytest.raises(TrainingError, match=r"With bitsandbytes \(pip install .*would fit: model\.quantize=int8"):
        planned.check()
    assert plan("model.quantize=nf4", gib=8).fits  # a sum takes no package


def test_steps_and_time(plan: Callable[..., PlannedRun]) -> None:
    assert plan("train.num_train_epochs=2").num_steps == 2 * 3  # 24 samples, 8 a step
    assert plan("train.max_steps=70").num_steps == 70
    assert plan(gib=24).chosen.seconds_per_step > 0


@pytest.mark.parametrize("overrides", [[], ["lora.lora_dropout=0"], ["train.max_tokens_per_device=70"]])
def test_no_pass_is_larger_than_planned(configure: Configure, overrides: list[str]) -> None:
    config = configure(*overrides, "train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=2")
    data = load_run_data(config, load_tokenizer(config.model.path or ""), 0)
    planned = plan_run(config, data.train, card())
    chosen = planned.chosen
    collator = PackingCollator(
        max_tokens=chosen.step.max_tokens,
        shares_prefix="lora.lora_dropout=0" in overrides,
        pads_to_buckets=chosen.settings.uses_graphs,
    )
    for start in range(0, len(data.train), 4):
        for packed in collator([data.train[index] for index in range(start, start + 4)])["micro_batches"]:
            assert len(packed.input_ids) <= chosen.step.largest.num_tokens


def test_the_table(plan: Callable[..., PlannedRun]) -> None:
    console = Console(record=True, width=100)
    print_plan(plan(gib=8), console)
    text = console.export_text()
    for word in ("weights", "adapters", "optimiser", "activations", "logits", "overhead", "reserve", "peak", "needed"):
        assert word in text
    assert "expected: 9 steps" in text
    assert "model.quantize=int8" in text


def test_the_table_adds_up_to_what_is_needed(plan: Callable[..., PlannedRun]) -> None:
    """Nothing counts that is not shown."""
    console = Console(record=True, width=100)
    print_plan(plan("train.cuda_graphs=true", gib=24), console)
    lines = re.findall(r"(\w[\w ]*?) +[│|] +([\d.]+) ", console.export_text())
    gib = {name.split()[-1]: float(value) for name, value in lines}
    terms = ("weights", "adapters", "optimiser", "activations", "logits", "overhead")
    assert sum(gib[term] for term in terms) == pytest.approx(gib["peak"], abs=0.04)
    assert gib["peak"] + gib["graphs"] + gib["reserve"] == pytest.approx(gib["needed"], abs=0.02)
    assert min(gib[term] for term in ("weights", "activations", "graphs", "reserve")) > 0


def test_running_out_of_memory_anyway(
    run: Callable[..., TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LoraTrainer.training_step

    def step(self: LoraTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(LoraTrainer, "training_step", step)
    with pytest.raises(TrainingError) as caught:
        run()
    message = str(caught.value)
    assert "out of memory after step 4" in message
    assert 1 <= message.count("GiB less") <= 3
    assert str(tmp_path / "run" / "checkpoint-3") in message
    assert (tmp_path / "run" / "checkpoint-3" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_a_run_on_a_quantised_base(run: Callable[..., TrainResult], tmp_path: Path, quantize: str) -> None:
    result = run(f"model.quantize={quantize}", "model.offload_embedding=true", "train.offload_checkpoints=true")
    assert result.first_loss is not None
    assert result.last_loss is not None
    assert result.last_loss < result.first_loss
    assert result.trainable.num_total == run(name="full").trainable.num_total
    manifest = RunManifest.read(tmp_path / "run")
    assert manifest is not None
    assert manifest.config["model"]["quantize"] == quantize


def test_a_resumed_run_keeps_its_format(run: Callable[..., TrainResult], tmp_path: Path) -> None:
    constant = "train.lr_scheduler_type=constant"
    run("model.quantize=int8", "train.max_steps=6", constant, name="whole")
    run("model.quantize=int8", "train.max_steps=3", constant)
    with pytest.raises(TrainingError, match=r"model\.quantize"):
        run("model.quantize=nf4", "train.max_steps=6", constant, "train.resume_from_checkpoint=true")
    run("train.max_steps=6", constant, "train.resume_from_checkpoint=true")  # auto: as it was
    losses = []
    for name in ("whole", "run"):
        lines = (tmp_path / name / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
        losses.append([entry["loss"] for entry in map(json.loads, lines) if "loss" in entry])
    assert losses[0] == losses[1]


def test_a_run_that_is_not_planned_is_plain(configure: Configure) -> None:
    config = configure()
    data = load_run_data(config, load_tokenizer(config.model.path or ""), 0)
    planned = plan_run(config, data.train, card(kind="cpu"))
    assert (planned.settings, planned.max_tokens) == (MemorySettings(), 4 * max(data.train.lengths))
    filled = with_settings(config, planned.chosen)
    assert plan_run(filled, data.train, card(kind="cpu")).chosen == planned.chosen
    assert filled.command() == config.command()
    with pytest.raises(ConfigError, match=r"cuda_graphs=true is not possible: it requires fused layers"):
        plan_run(configure("train.cuda_graphs=true"), data.train, card(kind="cpu"))


def test_labels_of_the_largest_pass(configure: Configure, data_file: Path) -> None:
    """Samples that are learnt in full may come together, however rare they are."""
    rows = [{"instruction": "问" * 40, "output": "答"}] * 200 + [{"instruction": "问", "output": "答" * 40}] * 4
    data_file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    config = configure("train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=2")
    data = load_run_data(config, load_tokenizer(config.model.path or ""), 0)
    assert data.train.num_labels.tolist() == [
        sum(label != -100 for label in data.train[index]["labels"][1:]) for index in range(204)
    ]
    planned = plan_run(config, data.train, card())
    longest = sorted(data.train.num_labels)[-2:]
    assert planned.chosen.step.largest.num_labels >= sum(longest)


@pytest.mark.parametrize("optim", ["paged_adamw_8bit", "adafactor"])
def test_graphs_take_torchs_own_optimisers(plan: Callable[..., PlannedRun], optim: str) -> None:
    assert plan("train.cuda_graphs=true", gib=40).chosen.settings.uses_graphs
    with pytest.raises(ConfigError, match=r"cuda_graphs=true is not possible"):
        plan("train.cuda_graphs=true", f"train.optim={optim}", gib=40)
    assert plan("model.dtype=float32", gib=80).chosen.settings.uses_graphs is False


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_an_adapter_trained_on_a_quantised_base_is_merged_into_the_original(
    run: Callable[..., TrainResult], tiny_base: Path, tmp_path: Path, quantize: str
) -> None:
    run(f"model.quantize={quantize}")
    result = merge(tmp_path / "run", tmp_path / "merged")
    assert result.difference <= result.tolerance < result.effect
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        merged = load(tmp_path / "merged").model(input_ids=ids).logits
        exact = load(tmp_path / "run", quantize="none")
        torch.testing.assert_close(merged, exact.model(input_ids=ids).logits, atol=1e-4, rtol=0)
        base, _ = load_base(tiny_base, "float32", "cpu")
        assert (merged - base(ids).logits).abs().max() > 1e-3


def test_a_run_that_does_not_fit_stops_before_loading(
    run: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU; here it is only said to be one."""
    monkeypatch.setattr(KnownDevice, "look", lambda *_: card(gib=0.001))
    monkeypatch.setattr(trainer_module, "load_base", lambda *_args, **_options: pytest.fail("loaded"))
    with pytest.raises(TrainingError, match=r"does not fit.*smallest card that would do"):
        run()


@pytest.mark.parametrize(
    ("error", "is_out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_errors_that_mean_too_little_memory(
    run: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch, error: RuntimeError, is_out: bool
) -> None:
    """Also while loading, where transformers' errors are turned into one of ours."""

    def fail(*_args: Any, **_options: Any) -> Any:
        raise ModelError("cannot be loaded") from error

    monkeypatch.setattr(trainer_module, "load_base", fail)
    expected = TrainingError if is_out else ModelError
    with pytest.raises(expected, match="out of memory before training began" if is_out else "cannot be loaded"):
        run()


def test_a_resumed_run_keeps_its_settings(run: Callable[..., TrainResult], tmp_path: Path) -> None:
    constant = "train.lr_scheduler_type=constant"
    run("train.max_steps=3", "train.max_tokens_per_device=40", "train.gradient_checkpointing=2", constant)
    manifest = RunManifest.read(tmp_path / "run")
    assert manifest is not None
    assert manifest.config["train"]["max_tokens_per_device"] == 40
    run("train.max_steps=6", "train.resume_from_checkpoint=true", constant)
    manifest = RunManifest.read(tmp_path / "run")
    assert manifest is not None
    assert manifest.config["train"]["max_tokens_per_device"] == 40
    assert manifest.config["train"]["gradient_checkpointing"] == 2
    run("train.max_steps=7", "train.resume_from_checkpoint=true", "train.max_tokens_per_device=90", constant)
    manifest = RunManifest.read(tmp_path / "run")
    assert manifest is not None
    assert manifest.config["train"]["max_tokens_per_device"] == 90


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ({"cuda_graphs": True}, []),  # as a GPU's plan has it, gone on with on a CPU
        ({"cuda_graphs": True}, ["train.offload_checkpoints=true"]),
        ({"offload_checkpoints": True, "gradient_checkpointing": 3}, ["train.gradient_checkpointing=false"]),
        ({"gradient_checkpointing": 0}, ["train.offload_checkpoints=true"]),
    ],
)
def test_earlier_settings_that_are_not_possible_any_more(
    run: Callable[..., TrainResult], tmp_path: Path, stored: dict[str, Any], asked: list[str]
) -> None:
    run("train.max_steps=3", "train.lr_scheduler_type=constant")
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-3"):
        manifest = RunManifest.read(folder)
        assert manifest is not None
        config = {**manifest.config, "train": {**manifest.config["train"], **stored}}
        dataclasses.replace(manifest, config=config).write(folder)
    again = ("train.max_steps=4", "train.lr_scheduler_type=constant", "train.resume_from_checkpoint=true")
    assert run(*again, *asked).num_steps == 4


def test_earlier_settings_fill_in_what_is_left_open(configure: Configure) -> None:
    before = {"model": {"quantize": "nf4"}, "train": {"gradient_checkpointing": 5, "cuda_graphs": None}}
    config = as_before(configure("train.max_tokens_per_device=77"), before)
    assert config.model.quantize == "nf4"
    assert config.train["gradient_checkpointing"] == 5
    assert config.train["max_tokens_per_device"] == 77
    assert config.train.get("cuda_graphs") is None
    assert as_before(configure("model.quantize=int8"), before).model.quantize == "int8"
    assert as_before(configure(), {}).model.quantize == "none"  # runs of earlier versions knew no other


def test_a_run_that_is_not_planned_stores_what_was_asked(run: Callable[..., TrainResult], tmp_path: Path) -> None:
    run("train.max_steps=1")
    manifest = RunManifest.read(tmp_path / "run")
    assert manifest is not None
    assert manifest.config["model"]["quantize"] == "none"
    assert manifest.config["train"]["gradient_checkpointing"] == "auto"
    assert "cuda_graphs" not in manifest.config["train"]


def test_after_a_checkpoint_no_other_format_is_advised(
    run: Callable[..., TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LoraTrainer, "save_state", fail)  # once all steps are done
    with pytest.raises(TrainingError, match="out of memory after step 3") as caught:
        run("train.max_steps=3")
    assert "checkpoint-3" in str(caught.value)
    assert "model.quantize" not in str(caught.value)
    with pytest.raises(TrainingError, match="out of memory after step 1") as caught:
        run("train.max_steps=1", "train.save_strategy=no", name="unsaved")
    assert "model.quantize" in str(caught.value)


def test_what_the_command_cannot_plan_is_said(plan: Callable[..., PlannedRun]) -> None:
    assert "train.torch_compile compiles them" in plan("train.torch_compile=true", gib=24).notes[0]


@pytest.fixture
def decide(configure: Configure) -> Callable[..., PlannedRun]:
    """What is decided for a card with so much free memory."""

    def decide(*overrides: str, gib: float, before: RunManifest | None = None) -> PlannedRun:
        config = configure(*overrides)
        data = load_run_data(config, load_tokenizer(config.model.path or ""), 0)
        planned = plan_run(config, data.train, card(gib), None if before is None else before.config)
        planned.check()
        return planned

    return decide


def test_a_run_on_a_gpu_goes_by_its_plan(decide: Callable[..., PlannedRun]) -> None:
    assert decide(gib=23.4).settings.quantize == "none"
    small = decide(gib=5.4)
    assert small.settings.quantize == "nf4"
    assert small.fits
    assert small.config.model.quantize == "nf4"
    assert small.config.train["max_tokens_per_device"] == small.max_tokens
    with pytest.raises(TrainingError, match="does not fit"):
        decide(gib=2)


def test_a_resumed_run_on_a_gpu_keeps_its_plan_while_that_fits(decide: Callable[..., PlannedRun]) -> None:
    first = decide("model.quantize=nf4", "train.gradient_checkpointing=9", gib=23.4)
    before = RunManifest(None, config=first.config.model_dump(mode="json"))
    assert decide("model.quantize=nf4", gib=23.4, before=before).settings == first.settings
    tight = decide("model.quantize=nf4", gib=4.5, before=before)
    assert tight.settings != first.settings
    assert tight.settings.quantize == "nf4"
    with pytest.raises(TrainingError, match="does not fit") as caught:
        decide("model.quantize=none", gib=8, before=before)
    assert "int8" not in str(caught.value)  # a resumed run cannot change its base


def test_a_gpu_that_is_too_full_to_be_looked_at_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(device_module, "free_device_bytes", fail)
    assert KnownDevice.measure(torch.device("cuda", 0), torch.bfloat16, 1).free_bytes == 0


def test_offloading_takes_fused_layers_everywhere(run: Callable[..., TrainResult]) -> None:
    with pytest.raises(
        ConfigError, match=r"offload_checkpoints=true is not possible: it requires fused layers; here, lora\.use_dora"
    ):
        run("lora.use_dora=true", "train.offload_checkpoints=true")


@pytest.mark.parametrize(
    "setting",
    [
        "lora.modules_to_save=[word_embeddings]",
        "lora.target_modules=[query_key_value, word_embeddings]",
        r"lora.target_modules='.*\.(word_embeddings|dense)'",
    ],
)
def test_an_embedding_on_the_host_is_not_trained_silently(run: Callable[..., TrainResult], setting: str) -> None:
    """It has no parameters, so that PEFT would find nothing to train in it and say nothing."""
    with pytest.raises(ConfigError, match=r"model\.offload_embedding=true is not possible"):
        run(setting, "model.offload_embedding=true")
