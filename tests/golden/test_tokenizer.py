"""Without these, texts and chats could get other ids than the official tokenizer gives."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import glmtune  # noqa: F401  (registers the Auto classes)
from glmtune.models.chatglm import ChatGLMTokenizer
from glmtune.prompts import Conversation, Message, render

TUTORIAL_SYSTEM = "现在你要扮演皇帝身边的女人--甄嬛"


@pytest.fixture(scope="module", params=["as published", "saved and reloaded"])
def tokenizer(request: pytest.FixtureRequest, golden: Path, tmp_path_factory: pytest.TempPathFactory):
    tokenizer = AutoTokenizer.from_pretrained(golden)
    if request.param == "saved and reloaded":
        folder = tmp_path_factory.mktemp("tokenizer")
        tokenizer.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="module")
def cases(golden: Path) -> dict:
    return json.loads((golden / "tokenizer_cases.json").read_text(encoding="utf-8"))


def test_special_ids(tokenizer: ChatGLMTokenizer, cases: dict) -> None:
    expected = cases["ids"]
    assert isinstance(tokenizer, ChatGLMTokenizer)
    assert (tokenizer.vocab_size, len(tokenizer)) == (expected["vocab_size"],) * 2
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (expected["pad"], expected["eos"])
    for token, token_id in expected.items():
        if token.startswith(("[", "<|")) or token in ("sop", "eop"):
            assert tokenizer.get_command(token) == token_id


def test_encode(tokenizer: ChatGLMTokenizer, golden: Path, cases: dict) -> None:
    with_roles = AutoTokenizer.from_pretrained(golden, encode_special_tokens=True)
    for case in cases["encode"]:
        used = with_roles if case.get("encode_special_tokens") else tokenizer
        assert used.encode(case["text"]) == case["ids"], case["text"]
        assert used.encode(case["text"], add_special_tokens=False) == case["ids_no_special"], case["text"]
        assert used(case["text"])["input_ids"] == case["ids"], case["text"]
        if "sp" in case:
            assert used.encode_text(case["text"]) == case["sp"], case["text"]


def test_decode(tokenizer: ChatGLMTokenizer, cases: dict) -> None:
    for case in cases["decode"]:
        assert tokenizer.decode(case["ids"]) == case["text"]
    rows = [case["ids"] for case in cases["decode"]]
    assert tokenizer.batch_decode(rows) == [case["text"] for case in cases["decode"]]


def test_chat(tokenizer: ChatGLMTokenizer, cases: dict) -> None:
    for case in cases["chat"]:
        inputs = tokenizer.build_chat_input(case["query"], history=case["history"], role=case["role"])
        assert inputs["input_ids"].tolist() == [case["ids"]]
        messages = [*case["history"], {"role": case["role"], "content": case["query"]}]
        assert tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == case["ids"]


def test_tutorial(tokenizer: ChatGLMTokenizer, cases: dict) -> None:
    for case in cases["tutorial"]:
        question = Message("user", case["instruction"] + case["input"])
        conversation = Conversation((question, Message("assistant", case["output"]))).with_system(TUTORIAL_SYSTEM)
        rendered = render(conversation, tokenizer, template="tutorial")
        assert rendered.input_ids == case["input_ids"]
        assert rendered.labels == case["labels"]
