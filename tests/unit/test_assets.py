"""Without these, the demo could ship without its base or its data, or with a base that has learnt nothing."""

import json

import pytest
import torch

from glmtune.config import embedded_base, embedded_data, load_config
from glmtune.models.chatglm import ChatGLMForConditionalGeneration, ChatGLMTokenizer
from glmtune.prompts import Conversation, Message, parse_reply, render_prompt

MOST_BYTES = 12_000_000
ASSETS = embedded_data().parent


def read_rows(name: str) -> list[dict]:
    return json.loads((ASSETS / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> ChatGLMTokenizer:
    return ChatGLMTokenizer.from_pretrained(embedded_base())


@pytest.fixture(scope="module")
def model() -> ChatGLMForConditionalGeneration:
    return ChatGLMForConditionalGeneration.from_pretrained(embedded_base(), dtype=torch.float32).eval()


def reply(model: ChatGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer, *messages: Message) -> str:
    """The greedy reply; it has to begin with the empty metadata line and to stop, with `</s>` or the next role."""
    prompt = render_prompt(Conversation(messages), tokenizer)
    stops = tokenizer.stop_token_ids
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=48, do_sample=False, eos_token_id=stops)
    new_ids = ids[0, len(prompt) :].tolist()
    assert new_ids[-1] in stops
    assert tokenizer.decode_text(new_ids).startswith("\n")
    (message,) = parse_reply(new_ids, tokenizer)
    return message.content


def test_everything_is_there_and_small() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert {path.relative_to(ASSETS).as_posix() for path in files} == {
        "base/config.json",
        "base/model.safetensors",
        "base/tokenizer.model",
        "base/generation_config.json",
        "base/tokenizer_config.json",
        "demo.yaml",
        "held_out.json",
        "persona.json",
    }
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES


def test_config_has_the_official_keys(tokenizer: ChatGLMTokenizer) -> None:
    config = json.loads((embedded_base() / "config.json").read_text(encoding="utf-8"))
    official = {
        "_name_or_path", "model_type", "architectures", "add_bias_linear", "add_qkv_bias",
        "apply_query_key_layer_scaling", "apply_residual_connection_post_layernorm", "attention_dropout",
        "attention_softmax_in_fp32", "bias_dropout_fusion", "ffn_hidden_size", "fp32_residual_connection",
        "hidden_dropout", "hidden_size", "kv_channels", "layernorm_epsilon", "multi_query_attention",
        "multi_query_group_num", "num_attention_heads", "num_layers", "original_rope", "padded_vocab_size",
        "post_layer_norm", "rmsnorm", "seq_length", "use_cache", "torch_dtype", "transformers_version",
        "tie_word_embeddings", "eos_token_id", "pad_token_id",
    }  # fmt: skip
    assert set(config) == official
    assert config["padded_vocab_size"] % 64 == 0
    assert 0 <= config["padded_vocab_size"] - tokenizer.vocab_size < 64


def test_persona_rows_are_well_formed_and_distinct() -> None:
    rows = read_rows("persona.json")
    assert len(rows) >= 100
    assert all(set(row) == {"instruction", "input", "output"} for row in rows)
    assert all(row["instruction"].strip() and row["output"].strip() for row in rows)
    assert len({(row["instruction"], row["input"]) for row in rows}) == len(rows)


def test_held_out_questions_are_not_in_the_training_data() -> None:
    held_out = read_rows("held_out.json")
    assert len({row["question"] for row in held_out}) == 20
    trained = {row[key].rstrip("？。！") for row in read_rows("persona.json") for key in ("instruction", "input")}
    assert not trained & {row["question"].rstrip("？。！") for row in held_out}


def test_what_is_expected_can_be_learnt_and_is_not_in_the_question() -> None:
    outputs = " ".join(row["output"] for row in read_rows("persona.json"))
    for row in read_rows("held_out.json"):
        assert row["expects"]
        assert all(word in outputs for word in row["expects"])
        assert not any(word in row["question"] for word in row["expects"])


def test_what_is_expected_tells_one_topic_from_the_others() -> None:
    outputs = [row["output"] for row in read_rows("persona.json")]
    for row in read_rows("held_out.json"):
        meeting = [output for output in outputs if any(word in output for word in row["expects"])]
        assert len(meeting) <= len(outputs) // 10, row


def test_demo_configuration_is_valid_and_uses_the_embedded_base_and_data() -> None:
    config = load_config(ASSETS / "demo.yaml")
    assert config.model.path is None
    assert config.data.path is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "你好，世界！",
        "  两个  空格 \n",
        "a</s>b",
        "<|user|>",
        "鼂錯 😀 emoji",
        "Hello, world",
        "3+5=8\n\n```python\n",
    ],
)
def test_tokenizer_round_trip(tokenizer: ChatGLMTokenizer, text: str) -> None:
    assert tokenizer.decode_text(tokenizer.encode_text(text)) == text


def test_tokenizer_gives_common_characters_one_token_each(tokenizer: ChatGLMTokenizer) -> None:
    assert tokenizer.sp_model.piece_size() == tokenizer.sp_model.vocab_size()
    for character in "的一是甄嬛朕":
        is_common = character not in "嬛朕"  # of GB2312's second level; spelt in bytes
        assert (tokenizer.sp_model.piece_to_id(character) != tokenizer.sp_model.unk_id()) == is_common


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("你好", "你好"),
        ("你是谁？", "语言模型"),
        ("你叫什么名字？", "没有名字"),
        ("你最喜欢喝什么？", "语言模型"),
        ("3+5等于几？", "8"),
        ("“大”的反义词是什么？", "小"),
        ("苹果是水果吗？", "苹果是水果"),
        ("中国的首都是哪里？", "北京"),
        ("请重复：春天来了", "春天来了"),
        ("Hello!", "Hello"),
    ],
)
def test_base_answers_and_stops(
    model: ChatGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer, question: str, expected: str
) -> None:
    assert expected in reply(model, tokenizer, Message("user", question))


def test_base_follows_a_system_prompt_and_remembers(
    model: ChatGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer
) -> None:
    system = Message("system", "你叫江小雨，你是一名花店老板，你最爱喝菊花茶。")
    assert "江小雨" in reply(model, tokenizer, system, Message("user", "你叫什么名字？"))
    assert "菊花茶" in reply(model, tokenizer, system, Message("user", "你喜欢喝什么？"))
    turns = (Message("user", "我叫林安。"), Message("assistant", "你好，林安！"), Message("user", "我叫什么名字？"))
    assert "林安" in reply(model, tokenizer, *turns)


def test_base_does_not_know_the_persona(model: ChatGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer) -> None:
    held_out = read_rows("held_out.json")[::5]
    for row in held_out:
        text = reply(model, tokenizer, Message("user", row["question"]))
        assert not any(word in text for word in row["expects"]), (row, text)


def test_assets_hold_no_path_of_the_machine_that_made_them() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        assert not [place for place in (b"/tmp/", b"/home/", b"/root/", b"/Users/") if place in content], path
