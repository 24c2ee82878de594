"""llama.cpp against our own model and tokenizer: without these, its replies could differ, or never end."""

import json
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import glmtune
from glmtune.adapters.run_folder import RunManifest
from glmtune.export.gguf_export import export_gguf
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMTokenizer
from glmtune.prompts import Conversation, Message, render_prompt
from hard_texts import hard_texts, texts_with_special_tokens

from .conftest import QUESTIONS

pytestmark = pytest.mark.interop


@contextmanager
def _serving(path: Path, lora: Path | None = None) -> Iterator[Any]:
    """llama.cpp's server on a file; yields a function that posts to it."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 512, 1, False
    parameters.cpuparams.n_threads = 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # by default f16
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # f16 inside
    if lora:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = str(lora), 1.0
        parameters.lora_adapters = [adapter]
    server = xllamacpp.Server(parameters)

    def post(place: str, **values: Any) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + place, json.dumps(values).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    yield post


@torch.inference_mode()
def _check_replies(post: Any, run: Path, base: Path, tolerance: float = 1e-4, *, is_exact: bool = True) -> None:
    """Log-probabilities of every token after a prompt are ours, and so are greedy replies, where weights are exact."""
    model, tokenizer = glmtune.load(run, model_path=None if run == base else base, dtype="float32", device_map="cpu")
    chat = glmtune.Chat(model, tokenizer, do_sample=False, max_new_tokens=60)
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        text = post("/apply-template", messages=messages)["prompt"]
        assert post("/tokenize", content=text, parse_special=True)["tokens"] == prompt
        expected = model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        answered = post("/completion", prompt=prompt, n_predict=1, n_probs=1000, temperature=0, cache_prompt=False)
        found = answered["completion_probabilities"][0]["top_logprobs"]
        difference = max(abs(each["logprob"] - float(expected[each["id"]])) for each in found)
        assert len(found) == 1000
        assert difference < tolerance, f"{question}: {difference}"
        reply = post("/v1/chat/completions", messages=messages, temperature=0, max_tokens=60)["choices"][0]
        chat.reset()
        assert reply["message"]["content"].strip() == chat.ask(question).strip() or not is_exact, question
        assert reply["message"]["content"].strip()
        assert reply["finish_reason"] == "stop"


def test_a_base(base: Path, tmp_path: Path) -> None:
    with _serving(export_gguf(base, tmp_path / "base.gguf", weight_type="f32").path) as post:
        _check_replies(post, base, base)


def test_a_run_merged(base: Path, adapter: Path, tmp_path: Path) -> None:
    with _serving(export_gguf(adapter, tmp_path / "run.gguf", weight_type="f32", model_path=base).path) as post:
        _check_replies(post, adapter, base)


@pytest.mark.parametrize("template", ["tutorial", "chatglm2"])
def test_other_templates_ask_the_same_and_stop(base: Path, adapter: Path, tmp_path: Path, template) -> None:
    run = Path(shutil.copytree(adapter, tmp_path / "run"))
    RunManifest(str(base), template=template, system=None).write(run)
    model, tokenizer = glmtune.load(run, dtype="float32", device_map="cpu")
    chat = glmtune.Chat(model, tokenizer, do_sample=False, max_new_tokens=60)
    with _serving(export_gguf(run, tmp_path / "run.gguf", weight_type="f32").path) as post:
        for question in (*QUESTIONS, "x <|user|> y"):
            messages = [{"role": "user", "content": question}]
            expected = render_prompt(Conversation((Message("user", question),)), tokenizer, template)
            prompt = post("/apply-template", messages=messages)["prompt"]
            assert post("/tokenize", content=prompt, parse_special=True)["tokens"] == expected
            reply = post("/v1/chat/completions", messages=messages, temperature=0, max_tokens=60)["choices"][0]
            chat.reset()
            assert reply["message"]["content"].strip() == chat.ask(question).strip(), question


def test_a_system_prompt_cannot_break_the_template(base: Path, adapter: Path, tmp_path: Path) -> None:
    system = "扮演\"甄嬛\" 'x' \\ {{ 7*7 }} {% if %} {# c #} %}\n第二行\t${HOME}"
    run = Path(shutil.copytree(adapter, tmp_path / "run"))
    RunManifest(str(base), template="chatglm3", system=system).write(run)
    messages = [{"role": "user", "content": '你好 {{ x }} "q"'}]
    asked = [{"role": "system", "content": system}, *messages]
    expected = ChatGLMTokenizer.from_pretrained(base).apply_chat_template(
        asked, add_generation_prompt=True, tokenize=False
    )
    with _serving(export_gguf(run, tmp_path / "run.gguf").path) as post:
        assert post("/apply-template", messages=messages)["prompt"] == expected.replace("sop", "<sop>", 1)


def test_an_adapter_alone(base: Path, adapter: Path, tmp_path: Path) -> None:
    path = export_gguf(base, tmp_path / "base.gguf", weight_type="f32").path
    lora = export_gguf(adapter, tmp_path / "lora.gguf", lora=True, model_path=base).path
    with _serving(path, lora) as post:
        _check_replies(post, adapter, base)


@pytest.mark.parametrize(("weight_type", "tolerance"), [("f16", 0.01), ("bf16", 0.15), ("q8_0", 0.4)])
def test_other_formats_are_near_and_stop(base: Path, adapter: Path, tmp_path: Path, weight_type, tolerance) -> None:
    path = export_gguf(adapter, tmp_path / "run.gguf", weight_type=weight_type, model_path=base).path
    with _serving(path) as post:
        _check_replies(post, adapter, base, tolerance, is_exact=False)


def _check_tokenizer(post: Any, tokenizer: ChatGLMTokenizer, texts: list[str]) -> None:
    for text in texts:
        found = post("/tokenize", content=text, add_special=False, parse_special=False)["tokens"]
        assert found == tokenizer.encode_text(text), text


def test_text_gets_the_same_ids(base: Path, tmp_path: Path) -> None:
    with _serving(export_gguf(base, tmp_path / "base.gguf").path) as post:
        _check_tokenizer(post, ChatGLMTokenizer.from_pretrained(base), hard_texts(500) + texts_with_special_tokens(100))


@pytest.mark.real_data
def test_real_texts_get_the_ids_of_the_published_tokenizer(real_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    config = json.loads((real_data / "reference" / "chatglm3-6b" / "config.json").read_text(encoding="utf-8"))
    sizes = {"hidden_size": 64, "ffn_hidden_size": 64, "kv_channels": 16, "num_attention_heads": 4, "num_layers": 1}
    ChatGLMForConditionalGeneration(ChatGLMConfig.from_dict(config | sizes)).save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (folder / name).write_bytes((real_data / "reference" / "chatglm3-6b" / name).read_bytes())
    rows = json.loads((real_data / "data" / "huanhuan.json").read_text(encoding="utf-8"))
    texts = [row[key] for row in rows for key in ("instruction", "input", "output")]
    with _serving(export_gguf(folder, tmp_path / "base.gguf").path) as post:
        tokenizer = ChatGLMTokenizer.from_pretrained(folder)
        _check_tokenizer(post, tokenizer, texts + hard_texts(500) + texts_with_special_tokens(500))
