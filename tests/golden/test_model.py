"""Without these, official weights could compute something else here than in the official code."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, DynamicCache

import glmtune  # noqa: F401  (registers the Auto classes)
from glmtune.models.chatglm import ChatGLMForConditionalGeneration

LOGITS = {"atol": 1e-4, "rtol": 0.0}


@pytest.fixture(scope="module", params=["as published", "saved and reloaded"])
def folder(request: pytest.FixtureRequest, golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "as published":
        return golden
    saved = tmp_path_factory.mktemp("model")
    _load(golden).save_pretrained(saved, max_shard_size="1MB")
    return saved


@pytest.fixture(scope="module")
def expected(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "expected.safetensors")


@pytest.fixture
def model(folder: Path) -> ChatGLMForConditionalGeneration:
    return _load(folder)


def kept(logits: Tensor, expected: dict[str, Tensor]) -> Tensor:
    """Those columns that there are expected values for."""
    return logits[..., expected["logit_columns"]]


def _load(folder: Path, attention: str = "sdpa") -> ChatGLMForConditionalGeneration:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_plain_forward(folder: Path, expected: dict[str, Tensor], attention: str) -> None:
    model = _load(folder, attention)
    with torch.no_grad():
        output = model(expected["plain.input_ids"], output_hidden_states=True)
    assert_close(kept(output.logits, expected), expected["plain.logits"], **LOGITS)
    hidden = [name for name in expected if name.startswith("plain.hidden.")]
    assert len(hidden) == len(output.hidden_states) == model.config.num_layers + 1
    for index, state in enumerate(output.hidden_states):
        assert_close(state, expected[f"plain.hidden.{index}"], **LOGITS)


@pytest.mark.parametrize("with_positions", [True, False])
def test_left_padded_forward(model, expected: dict[str, Tensor], with_positions: bool) -> None:
    mask = expected["padded.attention_mask"]
    positions = expected["padded.position_ids"] if with_positions else None
    with torch.no_grad():
        logits = model(expected["padded.input_ids"], attention_mask=mask, position_ids=positions).logits
    assert_close(kept(logits, expected)[mask == 1], expected["padded.logits"][mask == 1], **LOGITS)


def test_cached_forward(model, expected: dict[str, Tensor]) -> None:
    input_ids = expected["plain.input_ids"]
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids[:, :20], past_key_values=cache, use_cache=True)
        steps = [
            model(input_ids[:, [t]], past_key_values=cache, use_cache=True).logits
            for t in range(20, input_ids.shape[1])
        ]
    assert_close(kept(torch.cat(steps, dim=1), expected), expected["cached.logits"], **LOGITS)


def test_greedy(model, expected: dict[str, Tensor]) -> None:
    options = {"do_sample": False, "max_new_tokens": 24}
    single, batch = expected["greedy.single.output_ids"], expected["greedy.batch.output_ids"]
    prompt = single[:, : single.shape[1] - 24]
    model.generation_config.eos_token_id = None  # the golden replies do not heed the end token
    assert model.generate(prompt, **options).tolist() == single.tolist()
    mask = expected["padded.attention_mask"]
    output = model.generate(expected["padded.input_ids"], attention_mask=mask, **options)
    assert output.tolist() == batch.tolist()


def test_loss(model, expected: dict[str, Tensor]) -> None:
    loss = model(expected["plain.input_ids"], labels=expected["loss.labels"]).loss
    assert_close(loss, expected["loss.value"].reshape(()), atol=1e-5, rtol=0.0)


def test_lora_training(folder: Path, golden: Path, expected: dict[str, Tensor]) -> None:
    model = PeftModel.from_pretrained(_load(folder), golden / "adapter_init", is_trainable=True)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=5e-3, weight_decay=0.0)
    batch = {"input_ids": expected["lora.input_ids"], "labels": expected["lora.labels"]}
    losses = []
    for step in range(20):
        loss = model(**batch).loss
        loss.backward()
        if step == 0:
            gradients = {n.removeprefix("lora.grad0."): g for n, g in expected.items() if n.startswith("lora.grad0.")}
            assert len(gradients) == len(trained) > 0
            for name, parameter in trained.items():
                assert_close(parameter.grad, gradients[_published(name, gradients)], atol=1e-5, rtol=1e-3)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert_close(torch.tensor(losses), expected["lora.losses"], atol=1e-3, rtol=0.0)
    with torch.no_grad():
        logits = model(batch["input_ids"][:, :24]).logits
    assert_close(kept(logits, expected), expected["lora.final_logits"], **LOGITS)


def test_trained_adapter(folder: Path, golden: Path, expected: dict[str, Tensor]) -> None:
    model = PeftModel.from_pretrained(_load(folder), golden / "adapter_final").eval()
    with torch.no_grad():
        logits = model(expected["lora.input_ids"][:, :24]).logits
    assert_close(kept(logits, expected), expected["lora.final_logits"], **LOGITS)


def _published(name: str, gradients: dict[str, Tensor]) -> str:
    """The golden name of a PEFT parameter, with or without the adapter's own name in it."""
    return name if name in gradients else name.replace(".default", "")
