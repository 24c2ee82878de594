"""Without these, a base of a second family would be adapted and planned as if it were a ChatGLM."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPTJConfig, GPTJForCausalLM

from glmtune.adapters.lora import attach_lora
from glmtune.config import embedded_base, load_config
from glmtune.errors import AdapterError
from glmtune.loading.bases import read_base_config
from glmtune.models import families
from glmtune.models.chatglm import ChatGLMTokenizer
from glmtune.models.family import Family, LayerParts, Rotation, Shape
from glmtune.planning.shape import AdapterShape
from glmtune.planning.start import with_targets


class GPTJFamily(Family):
    """GPT-J: none of its modules is named as in ChatGLM, and its projections are separate."""

    config_class = GPTJConfig
    model_class = GPTJForCausalLM
    tokenizer_class = ChatGLMTokenizer
    tokenizer_files = ()
    layers_name = "transformer.h"
    embedding_weight = "transformer.wte.weight"
    head_weight = "lm_head.weight"
    last_projection = "fc_out"
    lora_targets = ("q_proj", "k_proj", "v_proj")
    buffers = ()

    def shape(self, config: GPTJConfig) -> Shape:
        return Shape(
            num_layers=config.n_layer,
            hidden_size=config.n_embd,
            ffn_hidden_size=config.n_inner,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.n_head,
            head_dim=config.n_embd // config.n_head,
            vocabulary_size=config.vocab_size,
            context_length=config.n_positions,
            norm_eps=config.layer_norm_epsilon,
            is_tied=False,
            has_rms_norm=True,  # it has not, but only with them is there a head to tell plain from trained
            has_fp32_residual=False,
            has_attention_dropout=config.attn_pdrop > 0,
            unusual=("separate projections",),
        )

    def layers(self, model: Any) -> Sequence[LayerParts]:
        raise NotImplementedError

    def final_norm(self, model: GPTJForCausalLM) -> nn.Module:
        return model.transformer.ln_f

    def rotation(self, config: Any, position_ids_BT: Tensor, dtype: torch.dtype) -> Rotation:  # noqa: N803
        raise NotImplementedError

    def read_config(self, folder: Path) -> GPTJConfig:
        return GPTJConfig.from_pretrained(folder)

    def checked_folder(self, path: str) -> Path:
        return Path(path)


@pytest.fixture(autouse=True)
def _second_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, GPTJFamily()))


@pytest.fixture
def gptj() -> GPTJConfig:
    sizes = {"n_layer": 3, "n_embd": 32, "n_head": 4, "n_inner": 48, "vocab_size": 96, "rotary_dim": 4}
    return GPTJConfig(**sizes, bos_token_id=1, eos_token_id=2)


@pytest.fixture
def resolved(gptj: GPTJConfig, tmp_path: Path) -> Any:
    """The targets of a run on a GPT-J, or on another base."""
    gptj.save_pretrained(tmp_path)

    def resolved(*overrides: str, base: Path = tmp_path) -> list[str] | str:
        config = load_config(None, [f"model.path={base}", *overrides])
        return with_targets(config, read_base_config(base)).lora["target_modules"]

    return resolved


def test_lora_adapts_what_the_bases_own_family_says(resolved: Any) -> None:
    assert resolved() == ["q_proj", "k_proj", "v_proj"]
    assert resolved(base=embedded_base()) == ["query_key_value"]


@pytest.fixture
def shape_of(gptj: GPTJConfig) -> Callable[..., AdapterShape]:
    def shape_of(**lora: Any) -> AdapterShape:
        return AdapterShape.of(attach_lora(GPTJForCausalLM(gptj), {"r": 2, "lora_dropout": 0.0, **lora}))

    return shape_of


def test_the_plan_sees_which_layers_are_adapted(shape_of: Callable[..., AdapterShape]) -> None:
    upper = shape_of(target_modules=["q_proj", "fc_out"], layers_to_transform=[1, 2])
    assert (upper.first_layer, upper.ranks, upper.is_on_last_projection) == (1, 4, True)
    assert shape_of(target_modules=["q_proj"]) == AdapterShape(
        3 * 2 * (32 + 32), 0, 2, is_on_last_projection=False, has_dropout=False, why_not_fused=upper.why_not_fused
    )


def test_the_plan_sees_what_is_trained_outside_the_layers(shape_of: Callable[..., AdapterShape]) -> None:
    """Below a trained embedding nothing can be left out; a trained norm or output layer needs all logits at once."""
    uppermost = {"target_modules": ["q_proj"], "layers_to_transform": [2]}
    found = {name: shape_of(**uppermost, modules_to_save=[name]) for name in ("wte", "ln_f", "lm_head", "ln_1")}
    assert {name: shape.first_layer for name, shape in found.items()} == {"wte": 0, "ln_f": 2, "lm_head": 2, "ln_1": 2}
    assert [name for name, shape in found.items() if shape.has_plain_head] == ["wte", "ln_1"]


def test_a_layer_that_the_model_has_not_is_named(shape_of: Callable[..., AdapterShape]) -> None:
    with pytest.raises(AdapterError, match="there is no layer 3; the model has layers 0 to 2"):
        shape_of(target_modules=["q_proj"], layers_to_transform=[3])


def test_targets_that_are_given_stay(resolved: Any) -> None:
    assert resolved("lora.target_modules=[fc_in]") == ["fc_in"]
    assert resolved("lora.target_modules=all-linear") == "all-linear"
    assert resolved("lora.target_modules=auto") == ["q_proj", "k_proj", "v_proj"]
