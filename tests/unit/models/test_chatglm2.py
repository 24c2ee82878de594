"""Without these, ChatGLM2 would be trained and asked in ChatGLM3's words, which it does not know."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from glmtune.config import embedded_base
from glmtune.errors import DataError, ModelError
from glmtune.export.merge import merge
from glmtune.inference.chat import Chat
from glmtune.loading.runs import load
from glmtune.models.chatglm import ChatGLMTokenizer, register_auto_classes
from glmtune.prompts import Conversation, Message, parse_reply, render, render_prompt, render_text

CONVERSATION = Conversation(
    (
        Message("user", "你好"),
        Message("assistant", "你好！"),
        Message("user", "你是谁？"),
        Message("assistant", "小助手"),
    )
)


def make_folder(folder: Path, **tokenizer_config: str) -> Path:
    folder.mkdir(parents=True)
    shutil.copyfile(embedded_base() / "tokenizer.model", folder / "tokenizer.model")
    values = {"tokenizer_class": "ChatGLMTokenizer", **tokenizer_config}
    (folder / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


@pytest.fixture
def tokenizer(tmp_path: Path) -> ChatGLMTokenizer:
    """As the published folder makes one."""
    register_auto_classes()
    return AutoTokenizer.from_pretrained(make_folder(tmp_path / "base", name_or_path="THUDM/chatglm2-6b"))


@pytest.mark.parametrize(
    ("folder", "code", "name", "has_role_tokens"),
    [
        ("base", None, "THUDM/chatglm3-6b", True),
        ("base", None, "THUDM/chatglm2-6b-32k", False),
        ("chatglm2-6b-int4", None, "", False),
        ("base", None, "", True),
        ("chatglm2-6b", 'special_tokens = ["sop", "<|user|>"]', "THUDM/chatglm2-6b", True),
        ("base", 'special_tokens = ["[MASK]", "sop", "eop"]', "", False),
    ],
)
def test_a_folder_says_whether_its_tokenizer_has_role_tokens(
    tmp_path: Path, folder: str, code: str | None, name: str, has_role_tokens: bool
) -> None:
    base = make_folder(tmp_path / folder, name_or_path=name)
    if code is not None:
        (base / "tokenization_chatglm.py").write_text(code, encoding="utf-8")
    tokenizer = ChatGLMTokenizer.from_pretrained(base)
    assert tokenizer.has_role_tokens == has_role_tokens
    assert tokenizer.template == ("chatglm3" if has_role_tokens else "chatglm2")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert ChatGLMTokenizer.from_pretrained(tmp_path / "saved").template == tokenizer.template


def test_the_prompt_is_the_official_text_in_one_piece(tokenizer: ChatGLMTokenizer) -> None:
    text = "[Round 1]\n\n问：你好\n\n答：你好！\n\n[Round 2]\n\n问：你是谁？\n\n答："
    assert tokenizer.build_prompt("你是谁？", [("你好", "你好！")]) == text
    asked = Conversation(CONVERSATION.messages[:-1])
    assert render_prompt(asked, tokenizer, "chatglm2") == tokenizer(text)["input_ids"]
    history = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]
    assert tokenizer.build_chat_input("你是谁？", history)["input_ids"].tolist() == [tokenizer(text)["input_ids"]]
    messages = [*history, {"role": "user", "content": "你是谁？"}]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == f"[gMASK]sop{text}"


def test_the_last_answer_and_its_end_are_learnt(tokenizer: ChatGLMTokenizer) -> None:
    rendered = render(CONVERSATION, tokenizer, "chatglm2")
    prompt = render_prompt(Conversation(CONVERSATION.messages[:-1]), tokenizer, "chatglm2")
    answer = [*tokenizer.encode_text("小助手"), tokenizer.eos_token_id]
    assert rendered.input_ids == [*prompt, *answer]
    assert rendered.loss_mask == [False] * len(prompt) + [True] * len(answer)
    assert parse_reply(answer, tokenizer, "chatglm2") == [Message("assistant", "小助手")]
    assert tokenizer.stop_token_ids == [tokenizer.eos_token_id]


def test_a_system_prompt_stands_before_the_first_round_and_tools_have_no_place(tokenizer: ChatGLMTokenizer) -> None:
    ids = render_prompt(Conversation((Message("user", "好"),)).with_system("你是猫"), tokenizer, "chatglm2")
    assert ids == tokenizer("你是猫\n\n[Round 1]\n\n问：好\n\n答：")["input_ids"]
    called = Conversation((Message("system", "", tools=({"name": "f"},)), Message("user", "好")))
    with pytest.raises(DataError, match="the chatglm2 template has no tools"):
        render_prompt(called, tokenizer, "chatglm2")
    with pytest.raises(ModelError, match="is not a special token"):
        tokenizer.get_command("<|user|>")


@pytest.mark.parametrize("max_length", [None, 24])
def test_a_last_answer_that_is_not_to_be_learnt_is_the_fault_that_is_told(
    tokenizer: ChatGLMTokenizer, max_length: int | None
) -> None:
    *context, last = CONVERSATION.messages
    unlearnt = Conversation((*context, replace(last, is_supervised=False)))
    with pytest.raises(DataError, match="teaches the last answer alone, and this one is marked as not to be learnt"):
        render(unlearnt, tokenizer, "chatglm2", max_length)


def test_the_tool_of_a_last_answer_is_refused_and_not_left_out(tokenizer: ChatGLMTokenizer) -> None:
    called = Conversation((Message("user", "天气"), Message("assistant", "tool_call(a=1)", metadata="get_weather")))
    with pytest.raises(DataError, match="the chatglm2 template has no tools"):
        render(called, tokenizer, "chatglm2")
    with pytest.raises(DataError, match="the chatglm2 template has no tools"):
        render_text(called, "chatglm2", for_generation=False)


@pytest.mark.parametrize("max_length", [24, 30, 40, 60])
def test_what_is_too_long_loses_old_rounds_first_and_never_the_frame(
    tokenizer: ChatGLMTokenizer, max_length: int
) -> None:
    long = Conversation((*CONVERSATION.messages[:-2], Message("user", "你" * 50), Message("assistant", "好" * 50)))
    ids = render(long, tokenizer, "chatglm2", max_length).input_ids
    assert len(ids) <= max_length
    assert ids[-1] == tokenizer.eos_token_id
    text = tokenizer.decode_text(ids)
    assert text.startswith("[Round 1]\n\n问：你你")
    assert "\n\n答：" in text


def test_every_way_of_asking_works(tmp_path: Path) -> None:
    folder = shutil.copytree(embedded_base(), tmp_path / "chatglm2")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["name_or_path"] = "THUDM/chatglm2-6b"
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = load(folder, device_map="cpu")
    assert loaded.template == "chatglm2"
    chat = Chat(loaded.model, loaded.tokenizer, max_new_tokens=8)
    assert isinstance(chat.ask("你好"), str)
    assert "".join(Chat(loaded.model, loaded.tokenizer, max_new_tokens=8).stream("你好")) == chat.history[-1].content
    reply, history = loaded.model.chat(loaded.tokenizer, "你好", do_sample=False, max_length=40)
    assert history[-1]["content"] == reply
    assert [text for text, _ in loaded.model.stream_chat(loaded.tokenizer, "你好", do_sample=False, max_length=40)]
    inputs = loaded.model.build_inputs(loaded.tokenizer, "你好")
    assert inputs["input_ids"].tolist() == loaded.tokenizer.build_chat_input("你好")["input_ids"].tolist()
    adapter = get_peft_model(loaded.model, LoraConfig(target_modules=["query_key_value"], task_type="CAUSAL_LM"))
    adapter.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter", tmp_path / "merged", model_path=folder)
    assert load(tmp_path / "merged", device_map="cpu").template == "chatglm2"
