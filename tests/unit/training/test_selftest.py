"""Without these, a run could report success with an adapter that has learnt nothing or is not what was saved."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from glmtune.adapters.adapter_files import save_adapter
from glmtune.adapters.lora import attach_lora, initial_adapter_weights
from glmtune.adapters.run_folder import RunManifest
from glmtune.errors import TrainingError
from glmtune.loading.bases import load_base
from glmtune.prompts import Conversation, Message, render
from glmtune.training.run import TrainResult
from glmtune.training.selftest import run_selftest

Run = Callable[..., TrainResult]
_TURNS = (Message("user", "你好"), Message("assistant", "嬛嬛在此。"))


@pytest.fixture
def trained(tiny_base: Path, tmp_path: Path) -> Callable[..., Any]:
    def make(
        init: Any = True, *, is_zero: bool = False, turns: tuple[Message, ...] = _TURNS, change: float = 0.01
    ) -> tuple[Any, ...]:
        base, tokenizer = load_base(tiny_base, device_map="cpu")
        model = attach_lora(base, {"target_modules": ["query_key_value"], "init_lora_weights": init})
        initial = initial_adapter_weights(model)
        if not is_zero:
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter += change
        save_adapter(model, tmp_path, initial)
        RunManifest(None, system="你是甄嬛").write(tmp_path)
        conversation = Conversation(turns)
        ids = render(conversation.with_system("你是甄嬛"), tokenizer).input_ids
        return model, tokenizer, tmp_path, conversation, ids, initial

    return make


@pytest.mark.parametrize("init", [True, "pissa", "olora"])
def test_a_sound_run(trained: Callable[..., Any], init: Any) -> None:
    model, *rest = trained(init)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    run_selftest(model, *rest)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize(("init", "message"), [(True, "lora_B are zero"), ("pissa", "has not changed")])
def test_an_adapter_that_learnt_nothing(trained: Callable[..., Any], init: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        run_selftest(*trained(init, is_zero=True))


@pytest.mark.parametrize("init", [True, "pissa"])
def test_an_adapter_that_is_not_finite(trained: Callable[..., Any], init: Any) -> None:
    with pytest.raises(TrainingError, match="adapter weights are not finite"):
        run_selftest(*trained(init, change=float("nan")))


_CALLED = (Message("user", "天气？"), Message("assistant", "{}", metadata="weather"), Message("observation", "晴"))


@pytest.mark.parametrize("before", [_TURNS[:1], _CALLED])
def test_an_answer_of_several_turns(trained: Callable[..., Any], before: tuple[Message, ...]) -> None:
    run_selftest(*trained(turns=(*before, Message("assistant", "我查一下。"), Message("assistant", "今天晴。"))))


def test_a_file_that_is_not_what_was_trained(trained: Callable[..., Any]) -> None:
    model, *rest = trained()
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(1)
    with pytest.raises(TrainingError, match="on disk differ"):
        run_selftest(model, *rest)


def test_another_prompt_than_in_training(trained: Callable[..., Any]) -> None:
    arguments = trained()
    file = arguments[2] / "glmtune.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "system": "别人"}))
    with pytest.raises(TrainingError, match="give other ids than those in training"):
        run_selftest(*arguments)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_told_in_our_own_words(
    run: Run, bias: str, console: Console, recwarn: pytest.WarningsRecorder
) -> None:
    run(f"lora.bias={bias}", "train.max_steps=1")
    assert not [each for each in recwarn if "Careful" in str(each.message)]
    assert f"lora.bias={bias} trains biases of the base, which stay changed where" in console.export_text()
