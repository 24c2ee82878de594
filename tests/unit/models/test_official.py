"""Without these, lines copied from the official README would fail, or do something else in silence."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from official_twin import official_logits
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    MaxLengthCriteria,
)

import glmtune  # noqa: F401  (registers the Auto classes)
from glmtune.errors import ModelError
from glmtune.models.chatglm import ChatGLMForConditionalGeneration

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture
def input_ids() -> torch.Tensor:
    return torch.randint(3, 640, (2, 19), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def padding_mask(input_ids: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(input_ids)
    mask[1, :8] = 0
    return mask


# ---- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_the_first_line_of_the_official_readme(official_folder: Path, device) -> None:
    model = AutoModel.from_pretrained(official_folder, trust_remote_code=True, device=device).eval()
    assert type(model) is ChatGLMForConditionalGeneration
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_a_device_that_is_not_there(official_folder: Path) -> None:
    with pytest.raises(ModelError, match="device='cuda:77': there is no such device here"):
        AutoModel.from_pretrained(official_folder, device="cuda:77")
    with pytest.raises(TypeError, match="pass only one of them"):
        AutoModel.from_pretrained(official_folder, device="cpu", device_map="auto")


def test_empty_init(official_folder: Path, input_ids) -> None:
    expected = AutoModel.from_pretrained(official_folder)(input_ids).logits
    model = AutoModel.from_pretrained(official_folder, empty_init=False)
    assert torch.equal(model(input_ids).logits, expected)
    assert AutoModel.from_config(model.config, empty_init=False)(input_ids).logits.isfinite().all()


def test_quantising_says_how_to_load_in_fewer_bits(make_model) -> None:
    model = make_model()
    for bits in (4, 8):
        with pytest.raises(ModelError, match=rf"quantize\({bits}\).*glmtune\.load.*model\.quantize"):
            model.quantize(bits)
    assert model.quantize(0) is model


@pytest.mark.parametrize("trust_remote_code", [None, True])
def test_sequence_classification_never_asks_to_run_code(official_folder: Path, tmp_path, trust_remote_code) -> None:
    folder = Path(shutil.copytree(official_folder, tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"]["AutoModelForSequenceClassification"] = "modeling_chatglm.ChatGLMForSequenceClassification"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_chatglm.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="ChatGLMForSequenceClassification is not supported"):
        AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=trust_remote_code)
    assert not (tmp_path / "ran").exists()


def test_the_official_seq2seq_class_name(official_folder: Path) -> None:
    assert type(AutoModelForSeq2SeqLM.from_pretrained(official_folder)) is ChatGLMForConditionalGeneration


# ---- forward ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_positional_arguments_have_the_official_order(make_model, input_ids, padding_mask) -> None:
    model = make_model()
    position_ids = (padding_mask.cumsum(-1) - 1).clamp(min=0)
    expected = official_logits(
        model.config.to_dict(), model.state_dict(), input_ids, position_ids=position_ids, attention_mask=padding_mask
    )
    seen = padding_mask.bool()
    assert_close(model(input_ids, position_ids, padding_mask).logits[seen], expected[seen], **CLOSE)
    hidden = model.transformer(input_ids, position_ids, padding_mask).last_hidden_state
    assert_close(model.transformer.output_layer(hidden)[seen], expected[seen], **CLOSE)
    embedded = model.get_input_embeddings()(input_ids)
    output = model(None, position_ids, padding_mask, None, embedded, input_ids, True)
    assert_close(output.logits[seen], expected[seen], **CLOSE)
    assert output.loss > 0
    assert output.past_key_values.get_seq_length() == 19


@torch.no_grad()
def test_an_attention_mask_in_the_place_of_positions_is_no_silent_misreading(make_model, input_ids) -> None:
    """It is the second argument of most models of transformers."""
    model = make_model()
    for mask in (torch.ones_like(input_ids), torch.ones(2, 19, dtype=torch.long).tril(8)):
        with pytest.raises(ValueError, match="attention_mask="):
            model(input_ids, mask)


@torch.no_grad()
def test_last_logit(make_model, input_ids) -> None:
    model = make_model()
    assert_close(model(input_ids, return_last_logit=True).logits, model(input_ids).logits[:, -1:])


def test_what_the_model_cannot_take_is_named(make_model, input_ids) -> None:
    model = make_model()
    layer = (torch.zeros(9, 2, 2, 16), torch.zeros(9, 2, 2, 16))
    with pytest.raises(TypeError, match="past_key_values is a tuple, expected a transformers Cache"):
        model(input_ids[:, -1:], past_key_values=(layer, layer))
    with pytest.raises(TypeError, match="full_attention_mask is not supported"):
        model.transformer(input_ids, None, None, torch.zeros(2, 1, 19, 19, dtype=torch.bool))


# ---- generation ------------------------------------------------------------------------------------------------------


def test_stream_generate_yields_the_growing_sequence(make_model, input_ids) -> None:
    model = make_model()
    prompt = input_ids[:1]
    whole = model.generate(prompt, max_new_tokens=6, do_sample=False)
    streamed = list(model.stream_generate(prompt, max_new_tokens=6, do_sample=False))
    assert [ids.tolist() for ids in streamed] == [whole[:, : 19 + n].tolist() for n in range(1, 7)]
    config = GenerationConfig(max_new_tokens=6, do_sample=False)
    (*_, last) = model.stream_generate(prompt, config, stopping_criteria=[MaxLengthCriteria(22)])
    assert last.tolist() == whole[:, :22].tolist()


def test_stream_generate_refuses_what_it_cannot_do(make_model, input_ids) -> None:
    model = make_model()
    with pytest.raises(ValueError, match="one row of input_ids, found 2"):
        next(model.stream_generate(input_ids))
    with pytest.raises(ValueError, match="return_past_key_values"):
        next(model.stream_generate(input_ids[:1], return_past_key_values=True))


def test_build_inputs(make_model, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_prompt(self, query: str, history=None) -> str:
        return "".join(f"{old}。{reply}。" for old, reply in history or []) + query

    monkeypatch.setattr(type(tokenizer), "build_prompt", build_prompt, raising=False)
    inputs = make_model().build_inputs(tokenizer, "天气？", history=[("你好", "你好")])
    assert inputs["input_ids"].tolist() == [tokenizer.encode("你好。你好。天气？")]
    assert inputs["attention_mask"].shape == inputs["input_ids"].shape


def test_drafting_with_fewer_layers_leaves_the_model_whole(make_model, input_ids, monkeypatch) -> None:
    model = make_model()
    prompt = input_ids[:1]
    options = {"max_new_tokens": 8, "do_sample": False}
    expected = model.generate(prompt, **options).tolist()
    assert model.generate(prompt, assistant_early_exit=1, **options).tolist() == expected
    for wrong in (0, -1, 3, 1.5, True):
        with pytest.raises(ValueError, match="expected a number of layers from 1 to 2"):
            model.generate(prompt, assistant_early_exit=wrong, **options)

    def interrupt(*args, **kwargs) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:  # in the draft, which comes first
        interrupted.setattr(model.transformer.encoder.layers[0], "forward", interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.generate(prompt, assistant_early_exit=1, **options)
    assert model.config.num_layers == 2
    assert model.generate(prompt, **options).tolist() == expected
