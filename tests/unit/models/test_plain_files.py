"""Without these, a merged folder would be tokenised wrongly by vLLM, plain transformers and others, silently."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import processes
from glmtune.models.chatglm import ChatGLMTokenizer
from glmtune.models.chatglm.plain_files import write_plain_files
from glmtune.prompts import Conversation, Message, render, render_prompt
from hard_texts import hard_texts, texts_with_special_tokens

CODE = "class ChatGLMTokenizer:\n    @eos_token.setter\n"
TOOL = {"name": "get_weather", "description": "晴雨", "parameters": {"type": "object", "properties": {}}}
CALL = {"function": {"name": "get_weather", "arguments": {"city": "北京", "days": 3}}}
USER = {"role": "user", "content": "你好"}
ANSWER = {"role": "assistant", "content": "你好！\n有什么事？"}
CHATS = [
    [USER],
    [{"role": "system", "content": "Be brief."}, USER, ANSWER, {"role": "user", "content": "  two\n\nlines "}],
    [USER, ANSWER],
    [{"role": "system", "content": ""}, {"role": "user", "content": "\n"}, {"role": "assistant", "content": ""}, USER],
    [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": '{"t": 1}'}],
    [USER, {"role": "assistant", "tool_calls": [CALL]}],
]


def _written(tokenizer: ChatGLMTokenizer, folder: Path, template: str = "chatglm3", system: str | None = None) -> Path:
    shutil.copyfile(tokenizer.vocab_file, folder / "tokenizer.model")
    config = Path(tokenizer.vocab_file).parent / "tokenizer_config.json"
    values = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")
    values = json.loads((Path(tokenizer.vocab_file).parent / "config.json").read_text(encoding="utf-8"))
    if not (folder / "tokenization_chatglm.py").is_file():
        values.pop("auto_map", None)  # as `merge` leaves it out
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    write_plain_files(folder, tokenizer, template, system)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> ChatGLMTokenizer:
    return ChatGLMTokenizer.from_pretrained(tiny_base)


@pytest.fixture(scope="module")
def plain_folder(tokenizer: ChatGLMTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _written(tokenizer, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def plain(plain_folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(plain_folder)


def test_text_gets_the_ids_of_sentencepiece(tokenizer, plain) -> None:
    for text in hard_texts(600):
        if not re.search(r"\b[se]op\b", text):
            assert plain.encode(text, add_special_tokens=False) == tokenizer.encode_text(text), text
            assert plain.encode(text) == tokenizer.encode(text), text
            assert plain.decode(plain.encode(text), skip_special_tokens=True) == tokenizer.decode_text(
                tokenizer.encode_text(text)
            )


def test_special_tokens_in_text_stay_text_where_that_is_asked_for(tokenizer, plain) -> None:
    for text in texts_with_special_tokens(200):
        ids = plain.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ids == tokenizer.encode_text(text), text


def test_english_words_are_not_cut(tokenizer, plain) -> None:
    special = {tokenizer.get_command("sop"), tokenizer.get_command("eop")}
    for word in ("philosophy", "people", "sops", "isopod", "sop流程", "eop1"):
        assert special.isdisjoint(plain.encode(word, add_special_tokens=False))


def test_the_ids_that_programs_look_for(tokenizer, plain) -> None:
    assert (plain.eos_token_id, plain.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert plain.padding_side == "left"
    assert all(plain.convert_tokens_to_ids(name) == number for name, number in tokenizer.special_tokens.items())
    assert len(plain) == len(tokenizer)
    assert plain("a", "b")["input_ids"] == tokenizer("a", "b")["input_ids"]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("tools", [None, [TOOL], [{"type": "function", "function": TOOL}]])
def test_a_rendered_prompt_has_the_ids_of_the_renderer(tokenizer, plain, chat, tools) -> None:
    is_answered = chat[-1]["role"] == "assistant"
    for asks in (False, True) if not is_answered else (False,):
        options = {"tools": tools, "add_generation_prompt": asks, "return_dict": True}
        expected = tokenizer.apply_chat_template(chat, **options)["input_ids"]
        assert plain.apply_chat_template(chat, **options)["input_ids"] == expected
        text = plain.apply_chat_template(chat, tokenize=False, **options)
        assert tokenizer.apply_chat_template(chat, tokenize=False, **options) == text


def test_the_assistant_s_words_are_marked_to_the_end_of_the_turn(tokenizer, plain) -> None:
    batch = plain.apply_chat_template([USER, ANSWER], return_dict=True, return_assistant_tokens_mask=True)
    expected = tokenizer.apply_chat_template([USER, ANSWER], return_dict=True, return_assistant_tokens_mask=True)
    assert batch["assistant_masks"] == expected["assistant_masks"]


def test_rendered_text_comes_back_to_ids_only_when_asked_for(tokenizer, plain_folder) -> None:
    asking = AutoTokenizer.from_pretrained(plain_folder, encode_special_tokens=True)
    assert type(asking) is ChatGLMTokenizer
    for chat in (CHATS[0], CHATS[1], CHATS[2]):
        ids = tokenizer.apply_chat_template(chat)["input_ids"]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        assert asking.encode(text, add_special_tokens=False) == ids
        assert tokenizer.encode(text, add_special_tokens=False) == tokenizer.encode_text(text) != ids


@pytest.mark.parametrize("template", ["chatglm3", "chatglm2", "tutorial"])
def test_the_prompt_is_that_of_the_run(golden_folders, tmp_path, template) -> None:
    name = "chatglm2-tiny" if template == "chatglm2" else "chatglm3-tiny"
    tokenizer = ChatGLMTokenizer.from_pretrained(golden_folders / name)
    plain = PreTrainedTokenizerFast.from_pretrained(_written(tokenizer, tmp_path, template, "现在你要扮演'甄嬛'\\"))
    turns = [Message("system", "现在你要扮演'甄嬛'\\"), Message("user", "你是谁？"), Message("assistant", "我是甄嬛。")]
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    again = [*turns, Message("user", "再说一遍")]
    asked = [*messages, {"role": "user", "content": "再说一遍"}]
    for prompt in (messages[:2], messages[1:2]):
        expected = render_prompt(Conversation(tuple(turns[:2])), tokenizer, template)
        assert plain.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"] == expected
    expected = render_prompt(Conversation(tuple(again)), tokenizer, template)
    assert plain.apply_chat_template(asked, add_generation_prompt=True)["input_ids"] == expected
    expected = render(Conversation(tuple(turns)), tokenizer, template).input_ids
    assert plain.apply_chat_template(messages)["input_ids"] == expected


def test_replies_are_read_without_the_empty_metadata_line(tokenizer, plain) -> None:
    reply = [*tokenizer.encode_text("\n"), *tokenizer.encode_text("你好！"), tokenizer.get_command("<|user|>")]
    prompt = tokenizer.apply_chat_template([USER], add_generation_prompt=True)["input_ids"]
    for each in (plain, tokenizer):
        assert each.parse_response(reply, prefix=prompt) == {"role": "assistant", "content": "你好！"}


@pytest.mark.parametrize("has_setters", [True, False])
def test_official_code_is_named_where_old_versions_alone_look_for_it(tokenizer, tmp_path, has_setters) -> None:
    (tmp_path / "tokenization_chatglm.py").write_text(CODE if has_setters else "", encoding="utf-8")
    _written(tokenizer, tmp_path)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    named = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["auto_map"]
    assert named["AutoTokenizer"] == ["tokenization_chatglm.ChatGLMTokenizer", None]
    assert written.keys().isdisjoint({"auto_map", "tokenizer_class", "chat_template"})
    assert ("eos_token" in written) is has_setters  # the first versions fail on it
    assert written["added_tokens_decoder"] == {}  # else transformers 4 takes those of tokenizer.json, and parses them
    for trusts in (None, True):
        assert type(AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=trusts)) is ChatGLMTokenizer


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/models/glm", "THUDM/chatglm3-6b"),
        (None, "THUDM/chatglm3-6b"),
        ("THUDM/chatglm3-6b-32k", "THUDM/chatglm3-6b-32k"),
    ],
)
def test_llama_cpp_s_converter_knows_the_family(tokenizer, tmp_path, name, expected) -> None:
    shutil.copytree(Path(tokenizer.vocab_file).parent, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    (tmp_path / "config.json").write_text(json.dumps(config | ({"_name_or_path": name} if name else {})))
    write_plain_files(tmp_path, tokenizer, "chatglm3", None)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert written["_name_or_path"] == expected
    assert written["vocab_size"] == written["padded_vocab_size"]


def test_plain_transformers_tokenises_a_merged_folder_without_glmtune(tokenizer, plain_folder, tmp_path) -> None:
    texts = [*hard_texts(100), *texts_with_special_tokens(20)]
    (tmp_path / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    code = (
        "import json, sys; sys.modules['glmtune'] = None\n"
        "from transformers import AutoTokenizer\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(plain_folder)!r})\n"
        f"texts = json.load(open({str(tmp_path / 'texts.json')!r}, encoding='utf-8'))\n"
        "ids = [tokenizer.encode(text, split_special_tokens=True) for text in texts]\n"
        f"chat = tokenizer.apply_chat_template([{USER!r}], add_generation_prompt=True, return_dict=False)\n"
        "print(json.dumps([ids, chat]))"
    )
    result = processes.run(sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr
    ids, chat = json.loads(result.stdout)
    assert ids == [tokenizer.encode(text) for text in texts]
    assert chat == tokenizer.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
