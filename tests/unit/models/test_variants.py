"""Without these, a variant of the architecture other than ChatGLM3-6B's could compute wrong numbers."""

from pathlib import Path

import pytest
import torch
from official_twin import official_logits
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import glmtune  # noqa: F401  (registers the Auto classes)

VARIANTS = {
    "chatglm3": {},
    "one group": {"multi_query_group_num": 1},
    "a group a head": {"multi_query_group_num": 4},
    "interleaved heads": {"multi_query_attention": False},
    "bias everywhere": {"add_bias_linear": True, "add_qkv_bias": False},
    "no bias at all": {"add_qkv_bias": False},
    "no final norm": {"post_layer_norm": False},
    "residual behind the norm": {"apply_residual_connection_post_layernorm": True},
    "layer norm": {"rmsnorm": False},
    "fp32 residual": {"fp32_residual_connection": True},
    "long context": {"rope_ratio": 50},
    "another epsilon": {"layernorm_epsilon": 0.1},
    "heads wider than the stream": {"kv_channels": 24},
    "tied embeddings": {"tie_word_embeddings": True},
    "all at once": {
        "multi_query_attention": False,
        "add_bias_linear": True,
        "post_layer_norm": False,
        "apply_residual_connection_post_layernorm": True,
        "rmsnorm": False,
        "fp32_residual_connection": True,
        "rope_ratio": 16,
    },
}
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(params=VARIANTS, ids=lambda name: name.replace(" ", "-"))
def variant(request: pytest.FixtureRequest) -> dict:
    return VARIANTS[request.param]


@pytest.fixture
def input_ids() -> torch.Tensor:
    return torch.randint(0, 640, (2, 19), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_forward(make_model, variant: dict, input_ids: torch.Tensor, attention: str) -> None:
    model = make_model(attention, **variant)
    with torch.no_grad():
        logits = model(input_ids).logits
    assert_close(logits, official_logits(model.config.to_dict(), model.state_dict(), input_ids), **CLOSE)


def test_left_padding_and_positions(make_model, variant: dict, input_ids: torch.Tensor) -> None:
    model = make_model(**variant)
    mask = torch.ones_like(input_ids)
    mask[1, :6] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0) + 3
    with torch.no_grad():
        logits = model(input_ids, attention_mask=mask, position_ids=positions).logits
    expected = official_logits(model.config.to_dict(), model.state_dict(), input_ids, mask, positions)
    assert_close(logits[mask == 1], expected[mask == 1], **CLOSE)


def test_cached_steps(make_model, variant: dict, input_ids: torch.Tensor) -> None:
    model = make_model(**variant)
    with torch.no_grad():
        expected = model(input_ids).logits
        cache = model(input_ids[:, :12], use_cache=True).past_key_values
        steps = [model(input_ids[:, [t]], past_key_values=cache).logits for t in range(12, 19)]
    assert_close(torch.cat(steps, dim=1), expected[:, 12:], **CLOSE)


def test_save_and_reload(make_model, variant: dict, input_ids: torch.Tensor, tmp_path: Path) -> None:
    model = make_model(**variant)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert {name: reloaded.config.to_dict()[name] for name in variant} == variant
    assert list(reloaded.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        assert torch.equal(reloaded(input_ids).logits, model(input_ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(make_model, variant: dict, input_ids: torch.Tensor, dtype: torch.dtype) -> None:
    """An untrained model's logits are large; what counts is that halves of their digits agree."""
    model = make_model(**variant)
    with torch.no_grad():
        expected = model(input_ids).logits
        logits = model.to(dtype)(input_ids).logits
    assert logits.dtype == dtype
    error = (logits.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < (0.03 if dtype == torch.bfloat16 else 0.005)


def test_autocast(make_model, input_ids: torch.Tensor) -> None:
    """Trainer's `bf16=True` on an fp32 model."""
    model = make_model()
    with torch.no_grad():
        expected = model(input_ids).logits
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids, use_cache=True).logits
    error = (logits.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert 0 < error < 0.03


def test_the_residual_stream_stays_fp32(make_model, input_ids: torch.Tensor) -> None:
    model = make_model(fp32_residual_connection=True).bfloat16()
    with torch.no_grad():
        hidden = model(input_ids, output_hidden_states=True).hidden_states
    assert {state.dtype for state in hidden} == {torch.float32}


def test_tied_embeddings_are_one_tensor(make_model, tmp_path: Path) -> None:
    make_model(tie_word_embeddings=True).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
