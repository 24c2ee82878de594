"""Canaries: what is overridden or read of transformers though it is private is there, and is called as it was."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainerState, TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from canary import changed
from glmtune import compat
from glmtune.config import embedded_base
from glmtune.models.chatglm import ChatGLMTokenizer
from glmtune.models.chatglm.modeling import ChatGLMPreTrainedModel
from glmtune.training.lora_trainer import LoraTrainer
from glmtune.training.packed_model import PackedModel

TRANSFORMERS = "transformers 5.23"


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def has_parameters(function: Callable[..., Any], expected: list[str]) -> bool:
    """Whether a function begins with these parameters and, beyond them, has none that must be given."""
    found = list(inspect.signature(function).parameters.values())
    rest = found[len(expected) :]
    is_optional = all(p.default is not p.empty or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in rest)
    return [p.name for p in found[: len(expected)]] == expected and is_optional


def test_the_defaults_of_generation_options_can_be_read() -> None:
    defaults = compat.generation_defaults()
    expected = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "num_beams": 1}
    assert {name: defaults.get(name) for name in expected} == expected, changed(
        TRANSFORMERS, "GenerationConfig._get_default_generation_params gives other defaults"
    )


def test_the_attention_of_a_configuration_can_be_read() -> None:
    config = PretrainedConfig(attn_implementation="eager")
    assert compat.attention_implementation(config) == "eager", changed(
        TRANSFORMERS, "PretrainedConfig._attn_implementation is not the attention that was asked for"
    )


def test_layers_are_checkpointed_by_a_flag_of_their_own(
    make_adapted: Callable[..., PackedModel], recwarn: pytest.WarningsRecorder
) -> None:
    base = make_adapted().get_base_model()
    compat.enable_checkpointing(base, {"use_reentrant": False})
    flags = [layer.gradient_checkpointing for layer in base.transformer.encoder.layers]
    assert flags == [True] * 3, changed(TRANSFORMERS, "layers are told otherwise than by gradient_checkpointing")
    deprecated = [str(warning.message) for warning in recwarn if issubclass(warning.category, FutureWarning)]
    assert not deprecated, changed(TRANSFORMERS, f"checkpointing is switched on by another name: {deprecated}")


def test_several_gpus_can_be_kept_from_data_parallel(tmp_path: Path) -> None:
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    arguments._n_gpu = 4
    assert arguments.n_gpu == 4, changed(TRANSFORMERS, "TrainingArguments.n_gpu is read from elsewhere than _n_gpu")
    compat.use_one_gpu(arguments)
    assert arguments.n_gpu == 1


def test_random_states_of_a_checkpoint_can_be_read(tmp_path: Path) -> None:
    torch.save({"numpy": np.random.get_state()}, tmp_path / "state.pth")
    with compat.trainer_state_globals():
        state = torch.load(tmp_path / "state.pth", weights_only=True)
    assert state["numpy"][0] == "MT19937", changed(TRANSFORMERS, "safe_globals does not let numpy's state through")


def test_all_trackers_are_known_by_their_names() -> None:
    known = compat.known_trackers()
    assert {"tensorboard", "wandb", *get_available_reporting_integrations()} <= set(known), changed(
        TRANSFORMERS, "INTEGRATION_TO_CALLBACK does not list the trackers that there are"
    )


# What LoraTrainer overrides or calls of Trainer, with the parameters that it counts on.
TRAINER_METHODS = {
    "_clip_grad_norm": ["self", "model"],
    "_get_grad_norm": ["self", "model", "grad_norm"],
    "_get_num_items_in_batch": ["self", "batch_samples", "device"],
    "_get_output_dir": ["self", "trial"],
    "_load_best_model": ["self"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "_load_scaler": ["self", "checkpoint"],
    "_push_from_checkpoint": ["self", "checkpoint_folder"],
    "_save": ["self", "output_dir", "state_dict"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_wrap_model": ["self", "model", "training", "dataloader"],
    "create_optimizer": ["self", "model"],
    "floating_point_ops": ["self", "inputs"],
    "log": ["self", "logs", "start_time"],
    "prediction_step": ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"],
    "save_model": ["self", "output_dir", "_internal_call"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
}


class Doubling(nn.Module):
    """One weight, whose loss is a number's square."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        output = x * self.weight
        return {"loss": (output**2).mean(), "output": output}


class WatchedTrainer(Trainer):
    """Notes which of the methods run, and with what; each batch weighs something else, and nothing is uploaded."""

    def __init__(self, **kwargs: Any) -> None:
        self.calls: list[tuple[str, dict[str, Any], Any]] = []
        super().__init__(**kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self.calls.append(("_push_from_checkpoint", {"checkpoint_folder": checkpoint_folder}, None))

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        weight = torch.tensor(1.0 + len(self.of("_get_num_items_in_batch")))
        self.calls.append(("_get_num_items_in_batch", {}, weight))
        return weight

    def of(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        return [(given, result) for called, given, result in self.calls if called == name]


def _watch(name: str) -> Callable[..., Any]:
    original = getattr(Trainer, name)

    def watched(self: WatchedTrainer, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        self.calls.append((name, inspect.signature(original).bind(self, *args, **kwargs).arguments, result))
        return result

    return watched


for method in TRAINER_METHODS:
    if hasattr(Trainer, method) and method not in vars(WatchedTrainer):
        setattr(WatchedTrainer, method, _watch(method))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, WatchedTrainer]:
    """A run of two steps, and one that goes on from its first."""
    folder = tmp_path_factory.mktemp("canary")
    trainers = {}
    for name in ("begun", "resumed"):
        arguments = TrainingArguments(
            str(folder),
            max_steps=2,
            save_steps=1,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            load_best_model_at_end=True,
            per_device_train_batch_size=1,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            save_on_each_node=True,
        )
        rows = [{"x": torch.ones(1), "labels": torch.ones(1)}] * 4
        trainer = WatchedTrainer(model=Doubling(), args=arguments, train_dataset=rows, eval_dataset=rows)
        arguments.push_to_hub = True  # only now: Trainer would make a repository
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-1") if name == "resumed" else None)
        trainers[name] = trainer
    return trainers


def test_every_private_override_of_the_trainer_has_a_canary() -> None:
    private = {name for name in vars(LoraTrainer) if name.startswith("_") and not name.startswith("__")}
    assert {name for name in private if hasattr(Trainer, name)} <= TRAINER_METHODS.keys()


@pytest.mark.parametrize("name", TRAINER_METHODS)
def test_the_trainer_has_the_method(name: str) -> None:
    assert hasattr(Trainer, name), changed(TRANSFORMERS, f"Trainer.{name} is gone, which LoraTrainer builds on")
    assert has_parameters(getattr(Trainer, name), TRAINER_METHODS[name]), changed(
        TRANSFORMERS, f"Trainer.{name} takes {parameters(getattr(Trainer, name))}, not {TRAINER_METHODS[name]}"
    )


@pytest.mark.parametrize("name", TRAINER_METHODS)
def test_training_calls_the_method(name: str, trained: dict[str, WatchedTrainer]) -> None:
    assert trained["begun"].of(name) or trained["resumed"].of(name), changed(
        TRANSFORMERS, f"Trainer.train no longer calls {name}, so LoraTrainer's is never heard"
    )


def test_a_step_is_made_of_what_the_overrides_return(trained: dict[str, WatchedTrainer]) -> None:
    begun = trained["begun"]
    steps, weights = begun.of("training_step"), [result for _, result in begun.of("_get_num_items_in_batch")]
    assert all(any(given["num_items_in_batch"] is weight for weight in weights) for given, _ in steps), changed(
        TRANSFORMERS, "training_step is not given what _get_num_items_in_batch returned"
    )
    wrapped = {id(result) for _, result in begun.of("_wrap_model")}
    assert all(id(given["model"]) in wrapped for given, _ in steps)


def test_the_gradient_norm_is_asked_for_once_a_step_after_clipping(trained: dict[str, WatchedTrainer]) -> None:
    order = [
        name for name, *_ in trained["begun"].calls if name in ("training_step", "_clip_grad_norm", "_get_grad_norm")
    ]
    assert order == ["training_step", "_clip_grad_norm", "_get_grad_norm"] * 2, changed(
        TRANSFORMERS, "Trainer asks for the gradient's norm at another time"
    )


def test_a_checkpoint_is_written_where_the_override_says(trained: dict[str, WatchedTrainer]) -> None:
    begun = trained["begun"]
    folder = begun.of("_get_output_dir")[0][1]
    assert [given["output_dir"] for given, _ in begun.of("_save")] == [
        f"{folder}/checkpoint-1",
        f"{folder}/checkpoint-2",
    ], changed(TRANSFORMERS, "_save_checkpoint writes elsewhere than _get_output_dir says")
    assert all(given["_internal_call"] for given, _ in begun.of("save_model"))
    assert Path(begun.of("_push_from_checkpoint")[0][0]["checkpoint_folder"]) == Path(folder) / "checkpoint-1"
    state = TrainerState.load_from_json(f"{folder}/checkpoint-2/trainer_state.json")
    assert state.global_step == 2


def test_a_resumed_run_loads_weights_before_the_optimiser(trained: dict[str, WatchedTrainer]) -> None:
    loaded = [name for name, *_ in trained["resumed"].calls if name.startswith("_load")]
    assert loaded == [
        "_load_from_checkpoint",
        "_load_optimizer_and_scheduler",
        "_load_scaler",
        "_load_best_model",
    ], changed(TRANSFORMERS, "Trainer resumes in another order")


# Each declares something to transformers; without it, loading, spreading or attention would silently be others.
@pytest.mark.parametrize(
    "name", [n for n in vars(ChatGLMPreTrainedModel) if n.startswith("_") and not n.startswith(("__", "_abc"))]
)
def test_a_model_declares_what_transformers_asks_for(name: str) -> None:
    assert hasattr(PreTrainedModel, name), changed(TRANSFORMERS, f"PreTrainedModel.{name} is gone")


@pytest.mark.parametrize(
    ("name", "call", "expected"),
    [
        ("_encode_plus", lambda tokenizer: tokenizer("ab"), {"padding_strategy", "truncation_strategy"}),
        ("_decode", lambda tokenizer: tokenizer.decode([5], skip_special_tokens=True), {"skip_special_tokens"}),
        ("_convert_token_to_id", lambda tokenizer: tokenizer.convert_tokens_to_ids(["a"]), set()),
        ("_convert_id_to_token", lambda tokenizer: tokenizer.convert_ids_to_tokens([5]), set()),
        ("_add_tokens", lambda tokenizer: tokenizer.add_tokens(["</s>"]), set()),
    ],
)
def test_the_tokenizers_public_calls_come_to_its_overrides(
    monkeypatch: pytest.MonkeyPatch, name: str, call: Callable[[ChatGLMTokenizer], Any], expected: set[str]
) -> None:
    tokenizer = ChatGLMTokenizer.from_pretrained(embedded_base())
    original, given = getattr(ChatGLMTokenizer, name), []

    def spy(self: ChatGLMTokenizer, *args: Any, **kwargs: Any) -> Any:
        given.append(set(kwargs))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ChatGLMTokenizer, name, spy)
    call(tokenizer)
    assert given, changed(TRANSFORMERS, f"the tokenizer's base class no longer calls {name}")
    assert expected <= given[0], changed(TRANSFORMERS, f"{name} is given {given[0]}")
