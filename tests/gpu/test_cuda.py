"""Without these, the model could compute something else on a GPU, in half precision or under flex attention than on the
CPU.
"""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import glmtune  # noqa: F401  (registers the Auto classes)
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.fixture
def model() -> ChatGLMForConditionalGeneration:
    """A small random model with grouped heads, on the GPU in fp32."""
    torch.manual_seed(0)
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=256,
        hidden_size=128,
        ffn_hidden_size=192,
        kv_channels=32,
        num_attention_heads=4,
        multi_query_attention=True,
        multi_query_group_num=2,
        add_qkv_bias=True,
    )
    return ChatGLMForConditionalGeneration(config).cuda().eval()


@pytest.mark.parametrize(
    ("model", "attention"),
    [
        ("chatglm3-tiny", "sdpa"),
        ("chatglm2-tiny", "sdpa"),
        ("chatglm3-tiny", "eager"),
        ("chatglm2-tiny", "eager"),
        ("chatglm3-tiny", "flex_attention"),  # torch 2.11 has no flex kernel for chatglm2's single key-value head
    ],
)
def test_golden_logits(golden_folders: Path, model: str, attention: str) -> None:
    golden = golden_folders / model
    expected = load_file(golden / "expected.safetensors")
    options = {"dtype": torch.float32, "attn_implementation": attention, "device_map": "cuda"}
    loaded = AutoModelForCausalLM.from_pretrained(golden, **options).eval()
    with torch.no_grad():
        logits = loaded(expected["plain.input_ids"].cuda()).logits.cpu()[..., expected["logit_columns"]]
    assert_close(logits, expected["plain.logits"], atol=1e-3 if attention == "flex_attention" else 1e-4, rtol=0.0)


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
@pytest.mark.parametrize("use_cache", [False, True])
def test_packed_samples_do_not_see_each_other(model, attention: str, use_cache: bool) -> None:
    model.set_attn_implementation(attention)
    lengths = [5, 17, 1, 40]
    samples = [torch.randint(256, (1, length), device="cuda") for length in lengths]
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0).cuda()
    with torch.no_grad():
        packed = model(torch.cat(samples, dim=1), position_ids=positions, use_cache=use_cache).logits
        alone = torch.cat([model(sample, use_cache=False).logits for sample in samples], dim=1)
    assert_close(packed, alone, atol=2e-3, rtol=0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision_is_near(model, dtype: torch.dtype) -> None:
    input_ids = torch.randint(256, (2, 33), device="cuda")
    with torch.no_grad():
        exact = model(input_ids).logits
        near = model.to(dtype)(input_ids).logits
    assert near.dtype == dtype
    assert (near.float() - exact).norm() / exact.norm() < 0.03


def test_lora_learns_in_bf16_with_checkpointing(model) -> None:
    peft_model = get_peft_model(model.bfloat16(), LoraConfig(r=8, lora_alpha=32, target_modules=["query_key_value"]))
    peft_model.gradient_checkpointing_enable({"use_reentrant": False})
    peft_model.enable_input_require_grads()
    peft_model.train()
    trained = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    input_ids = torch.randint(256, (4, 24), device="cuda")
    losses = []
    for _ in range(20):
        loss = peft_model(input_ids=input_ids, labels=input_ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
