import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict

from glmtune.errors import ModelError
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.tuning.fused import fuse
from glmtune.tuning.lora import attach_lora
from glmtune.tuning.quantize import QuantizedLinear, quantize_layers

LINEARS = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}

Samples = list[dict[str, list[int]]]


def make(**config: Any) -> ChatGLMForConditionalGeneration:
    """A random model whose widths are multiples of 16; the same weights at every call."""
    sizes = {
        "num_layers": 3,
        "hidden_size": 64,
        "ffn_hidden_size": 96,
        "num_attention_heads": 4,
        "kv_channels": 16,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "add_qkv_bias": True,
        "padded_vocab_size": 96,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ChatGLMForConditionalGeneration(ChatGLMConfig(**{**sizes, **config}))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.1)
    return model.eval()


def adapted(model: ChatGLMForConditionalGeneration, targets: Any = "all-linear") -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        result = attach_lora(model, {"r": 4, "lora_alpha": 8, "target_modules": targets})
        for name, parameter in result.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return result.train()


@pytest.fixture
def quantized() -> ChatGLMForConditionalGeneration:
    model = make()
    quantize_layers(model, "fp8")
    return model


@pytest.fixture
def input_ids() -> torch.Tensor:
    return torch.randint(96, (2, 20), generator=torch.Generator().manual_seed(0))


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return ((result - expected).norm() / expected.norm()).item()


def test_the_linears_of_all_blocks_are_quantized(quantized: ChatGLMForConditionalGeneration) -> None:
    names = [name for name, module in quantized.named_modules() if isinstance(module, QuantizedLinear)]
    assert len(names) == 12
    assert {name.rpartition(".")[2] for name in names} == LINEARS
    weights = [quantized.get_submodule(name).weight for name in names]
    assert {weight.element_size() for weight in weights} == {1}
    assert not any(weight.requires_grad for weight in weights)


def test_everything_else_stays_as_it_is(quantized: ChatGLMForConditionalGeneration) -> None:
    before = make().state_dict()
    kept = {name: value for name, value in quantized.state_dict().items() if name.split(".")[-2] not in LINEARS}
    assert len(kept) == 2 + 2 * 3 + 1
    assert all(torch.equal(value, before[name]) for name, value in kept.items())


def test_none_leaves_all_as_it_is(input_ids: torch.Tensor) -> None:
    model = make()
    quantize_layers(model, "none")
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
    assert torch.equal(model(input_ids).logits, make()(input_ids).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_near_those_of_full_precision(input_ids: torch.Tensor, dtype: torch.dtype) -> None:
    model = make().to(dtype)
    quantize_layers(model, "fp8")
    logits = model(input_ids).logits
    assert logits.dtype == dtype
    assert 0 < relative_error(logits.float(), make()(input_ids).logits) < 0.08


def test_biases_are_kept(input_ids: torch.Tensor) -> None:
    model = make(add_bias_linear=True)
    full = copy.deepcopy(model)
    quantize_layers(model, "fp8")
    assert relative_error(model(input_ids).logits, full(input_ids).logits) < 0.08


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"hidden_size": 24}, "query_key_value is 24 x 128"),
        ({"ffn_hidden_size": 44}, "dense_h_to_4h is 64 x 88"),
        ({"num_attention_heads": 3, "kv_channels": 4, "multi_query_group_num": 1}, "query_key_value is 64 x 20"),
    ],
)
def test_widths_that_fp8_cannot_multiply(config: dict[str, int], named: str) -> None:
    with pytest.raises(ModelError, match=f"multiples of 16; {named}"):
        quantize_layers(make(**config), "fp8")


def test_adapters_are_put_on_in_float32(quantized: ChatGLMForConditionalGeneration) -> None:
    model = adapted(quantized)
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert len(trained) == 2 * 4 * 3
    assert {each.dtype for each in trained.values()} == {torch.float32}
    assert all("lora_" in name for name in trained)


def test_adapters_begin_as_on_any_base(quantized: ChatGLMForConditionalGeneration) -> None:
    """Names, shapes and numbers: none of them is rounded to fp8."""
    ours, theirs = get_peft_model_state_dict(adapted(quantized)), get_peft_model_state_dict(adapted(make()))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("targets", ["query_key_value", "all-linear"])
def test_gradients_reach_the_adapters(samples: Samples, packed: Callable, targets: str, is_fused: bool) -> None:
    """They are near those of the base in full precision; rounding grows with the layers that they pass."""
    exact = packed(adapted(make(), targets), samples)
    model = make()
    quantize_layers(model, "fp8")
    model = adapted(model, targets)
    if is_fused:
        assert fuse(model) is None
    result = packed(model, samples)
    assert result.loss == pytest.approx(exact.loss, rel=0.01)
    assert result.gradients.keys() == exact.gradients.keys()
    for name, gradient in exact.gradients.items():
        assert 0 < relative_error(result.gradients[name], gradient) < 0.2, name


@pytest.mark.parametrize("targets", ["query_key_value", "all-linear"])
def test_fused_layers_agree_with_peft(
    quantized: ChatGLMForConditionalGeneration, samples: Samples, packed: Callable, targets: str
) -> None:
    """In the last layer, gradients of queries and of keys are rounded apart, which those before it see."""
    model = adapted(quantized, targets)
    expected = packed(model, samples)
    assert fuse(model) is None
    for collator in ({}, {"shares_prefix": True}, {"max_tokens": 20}):
        result = packed(model, samples, **collator)
        assert result.loss == pytest.approx(expected.loss, rel=1e-3)
        for name, gradient in expected.gradients.items():
            is_last = ".layers.2." in name
            assert relative_error(result.gradients[name], gradient) < (1e-3 if is_last else 0.08), name
