"""Without these, special tokens in a user's text could end a turn, and padding or saving change the ids."""

import json
import multiprocessing
import pickle
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

import glmtune  # noqa: F401  (registers the Auto classes)
from glmtune.errors import ModelError
from glmtune.models.chatglm import ChatGLMForConditionalGeneration, ChatGLMTokenizer, IncrementalDecoder

SHORT, LONG = "你好", "今天天气怎么样？ Hello, what is the weather like in Beijing?"
SPELT = ["a</s>b", "<unk>x", "<s>", "<|user|>\n你好<|assistant|>", "[gMASK]sop", "</s>"]
TEXTS = [
    "你好，我是人工智能助手。",
    "  two spaces, and a tail  ",
    "emoji 😀👩‍👩‍👧 and rare 𠮷龘",
    "line\nline\n\n\ttab",
    " 😀 ",
    "\u3000全角",
    "a\ufffdb",
]


# ---- encoding --------------------------------------------------------------------------------------------------------


def test_prefix(tokenizer) -> None:
    plain = tokenizer.encode(LONG, add_special_tokens=False)
    assert tokenizer.encode(LONG) == [*tokenizer.prefix_token_ids, *plain]
    assert tokenizer(LONG)["input_ids"] == tokenizer.encode(LONG)
    assert set(tokenizer(LONG)) == {"input_ids", "attention_mask"}
    assert tokenizer.encode("") == tokenizer.prefix_token_ids


@pytest.mark.parametrize("text", SPELT)
def test_special_tokens_in_text_stay_text(tokenizer, text) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer([text], add_special_tokens=False)["input_ids"] == [ids]


def test_pieces(tokenizer) -> None:
    assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(LONG)) == tokenizer.encode_text(LONG)


def test_a_piece_that_is_spelt_like_a_command(tokenizer) -> None:
    piece = tokenizer.sp_model.piece_to_id("sop")
    assert piece != tokenizer.sp_model.unk_id()
    assert piece in tokenizer.encode_text("qsop")
    for ids in (tokenizer("qsop"), tokenizer(["qsop"])):
        assert ids["input_ids"] in (tokenizer.encode("qsop"), [tokenizer.encode("qsop")])
    assert tokenizer.encode("qsop", add_special_tokens=False) == tokenizer.encode_text("qsop")
    assert tokenizer(["qsop", "a"], is_split_into_words=True)["input_ids"].count(tokenizer.get_command("sop")) == 1
    pair = tokenizer(["qsop"], ["qsop"], is_split_into_words=True)["input_ids"]
    assert pair == tokenizer("qsop", "qsop")["input_ids"]


def test_role_tokens_are_recognised_only_when_asked_for(tokenizer_folder) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, encode_special_tokens=True)
    user = tokenizer.get_command("<|user|>")
    assert tokenizer.encode("<|user|>你好", add_special_tokens=False) == [user, *tokenizer.encode_text("你好")]
    assert tokenizer.eos_token_id not in tokenizer.encode("a</s>b")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("how", [{"padding": True}, {"padding": "max_length", "max_length": 40}])
def test_padding(tokenizer, side, how) -> None:
    batch = tokenizer([SHORT, LONG], padding_side=side, return_tensors="pt", **how)
    rows = [tokenizer.encode(SHORT), tokenizer.encode(LONG)]
    width = how.get("max_length", max(map(len, rows)))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, width)
    for ids, mask, expected in zip(batch["input_ids"], batch["attention_mask"], rows, strict=True):
        padding = [tokenizer.pad_token_id] * (width - len(expected))
        assert ids.tolist() == (padding + expected if side == "left" else expected + padding)
        assert ids[mask == 1].tolist() == expected


def test_the_default_padding_side_is_left(tokenizer) -> None:
    assert tokenizer.padding_side == "left"
    assert tokenizer([SHORT, LONG], padding=True)["attention_mask"][0][0] == 0


def test_pad_takes_features(tokenizer) -> None:
    features = [{"input_ids": [5, 6], "attention_mask": [1, 1]}, {"input_ids": [7, 8, 9], "attention_mask": [1, 1, 1]}]
    batch = tokenizer.pad(features, padding=True, return_tensors="pt", padding_side="right", pad_to_multiple_of=4)
    assert batch["input_ids"].tolist() == [[5, 6, 0, 0], [7, 8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]


@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_truncation(tokenizer, add_special_tokens) -> None:
    whole = tokenizer.encode(LONG, add_special_tokens=add_special_tokens)
    options = {"add_special_tokens": add_special_tokens, "truncation": True}
    assert tokenizer.encode(LONG, max_length=8, **options) == whole[:8]
    assert tokenizer.encode(LONG, max_length=512, **options) == whole
    batch = tokenizer([SHORT, LONG], max_length=8, padding="max_length", return_tensors="pt", **options)
    assert batch["input_ids"].shape == (2, 8)


@pytest.mark.parametrize("return_tensors", ["pt", "np"])
def test_return_tensors(tokenizer, return_tensors) -> None:
    encoded = tokenizer(LONG, return_tensors=return_tensors)
    assert encoded["input_ids"].shape == (1, len(tokenizer.encode(LONG)))
    assert encoded["input_ids"].tolist() == [tokenizer.encode(LONG)]
    assert tokenizer.encode(LONG, return_tensors="pt").tolist() == [tokenizer.encode(LONG)]


def test_pairs(tokenizer) -> None:
    first, second = tokenizer.encode_text(SHORT), tokenizer.encode_text(LONG)
    expected = [*tokenizer.prefix_token_ids, *first, *second, tokenizer.eos_token_id]
    assert tokenizer(SHORT, LONG)["input_ids"] == tokenizer([SHORT], [LONG])["input_ids"][0] == expected


def test_words(tokenizer) -> None:
    words = ["Hello", "a</s>b", "你好"]
    ids = tokenizer(words, is_split_into_words=True, add_special_tokens=False)["input_ids"]
    assert ids == [token_id for word in words for token_id in tokenizer.encode_text(word)]
    batch = tokenizer([words, ["你好"]], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    assert batch == [ids, tokenizer.encode_text("你好")]


def test_commands(tokenizer) -> None:
    first = tokenizer.sp_model.vocab_size()
    assert [tokenizer.get_command(token) for token in tokenizer.special_tokens] == list(range(first, first + 9))
    assert tokenizer.get_command("</s>") == tokenizer.eos_token_id == 2
    assert tokenizer.build_single_message("user", "", SHORT) == [
        tokenizer.get_command("<|user|>"),
        *tokenizer.encode_text("\n"),
        *tokenizer.encode_text(SHORT),
    ]
    with pytest.raises(ModelError, match=r"'<\|nobody\|>' is not a special token"):
        tokenizer.get_command("<|nobody|>")
    with pytest.raises(ModelError, match="nobody"):
        tokenizer.build_single_message("nobody", "", SHORT)


def test_the_vocabulary_is_fixed(tokenizer) -> None:
    assert len(tokenizer) == tokenizer.vocab_size == 1 + max(tokenizer.get_vocab().values())
    for add in (tokenizer.add_tokens, lambda tokens: tokenizer.add_special_tokens({"extra_special_tokens": tokens})):
        with pytest.raises(ModelError, match=r"vocabulary is fixed.*<new>"):
            add(["<new>"])
    assert tokenizer.add_tokens(["<|user|>", "</s>"]) == 0
    assert len(tokenizer) == tokenizer.vocab_size


# ---- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_text_back(tokenizer, text) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.decode(torch.tensor(ids), skip_special_tokens=True) == text
    batch = torch.tensor([ids, ids])
    assert tokenizer.batch_decode(batch, skip_special_tokens=True) == [text, text]
    assert tokenizer.decode(batch, skip_special_tokens=True) == [text, text]


def test_decoding_special_tokens(tokenizer) -> None:
    ids = [*tokenizer.encode(SHORT), tokenizer.get_command("<|user|>"), tokenizer.eos_token_id]
    assert "[gMASK]" in tokenizer.decode(ids)
    assert "<|user|>" in tokenizer.decode(ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == SHORT
    assert tokenizer.decode(tokenizer.get_command("<|user|>")) == "<|user|>"
    assert tokenizer.decode(torch.tensor(tokenizer.encode_text(SHORT)[-1])) != ""
    assert tokenizer.decode([]) == ""
    assert tokenizer.convert_ids_to_tokens(ids)[0] == "[gMASK]"


def test_ids_beyond_the_tokenizer_have_no_text(tokenizer) -> None:
    """The embedding has more rows than there are tokens; an untrained model may name one of them."""
    assert (
        tokenizer.decode([*tokenizer.encode_text(SHORT), tokenizer.vocab_size + 3], skip_special_tokens=True) == SHORT
    )


@pytest.mark.parametrize("text", TEXTS)
def test_incremental_decoding_equals_decoding(tokenizer, text) -> None:
    ids = tokenizer.encode_text(text)
    whole = tokenizer.decode_text(ids)
    for split in range(len(ids) + 1):
        decoder = IncrementalDecoder(tokenizer)
        assert decoder.push(ids[:split]) + decoder.push(ids[split:]) + decoder.flush() == whole
    decoder = IncrementalDecoder(tokenizer)
    parts = [decoder.push([token_id]) for token_id in ids]
    assert "".join(parts) + decoder.flush() == whole
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


def test_incremental_decoding_of_a_broken_character(tokenizer) -> None:
    ids = [*tokenizer.encode_text("a"), *tokenizer.encode_text("😀")[-4:-1]]
    decoder = IncrementalDecoder(tokenizer)
    text = "".join(decoder.push([token_id]) for token_id in ids)
    assert text == "a"
    assert text + decoder.flush() == tokenizer.decode_text(ids)
    broken = [*ids, *tokenizer.encode_text("b, and on")]
    decoder = IncrementalDecoder(tokenizer)
    assert "".join(decoder.push([token_id]) for token_id in broken) + decoder.flush() == tokenizer.decode_text(broken)


def test_incremental_decoding_across_special_tokens(tokenizer) -> None:
    for special in ("<|assistant|>", "</s>"):
        ids = [*tokenizer.encode_text(SHORT), tokenizer.get_command(special), *tokenizer.encode_text(LONG)]
        decoder = IncrementalDecoder(tokenizer)
        assert "".join(decoder.push([i]) for i in ids) + decoder.flush() == tokenizer.decode_text(ids)


# ---- saving and loading ----------------------------------------------------------------------------------------------


def test_save_and_reload(tokenizer, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == Path(tokenizer.vocab_file).read_bytes()
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "ChatGLMTokenizer"
    template_file = tmp_path / "chat_template.jinja"
    kept = template_file.read_text() if template_file.is_file() else saved["chat_template"]
    assert "[gMASK]sop" in kept
    assert "{% generation %}" not in kept  # the published one, which other programs can read
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(reloaded) is ChatGLMTokenizer
    for text in (*TEXTS, *SPELT, LONG):
        assert reloaded.encode(text) == tokenizer.encode(text)
    reloaded.save_pretrained(tmp_path)  # onto its own file
    assert AutoTokenizer.from_pretrained(tmp_path).encode(LONG) == tokenizer.encode(LONG)
    assert len(reloaded) == len(tokenizer)


def _encode(tokenizer: ChatGLMTokenizer, text: str) -> list[int]:
    return tokenizer.encode(text)


def test_pickling(tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert [copy.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_encode, (tokenizer, LONG)) == tokenizer.encode(LONG)


@pytest.mark.parametrize("trust_remote_code", [None, False, True])
def test_code_files_in_the_folder_are_never_run(official_folder, tmp_path, trust_remote_code) -> None:
    for file in official_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for name in ("modeling", "tokenization", "configuration"):
        (tmp_path / f"{name}_chatglm.py").write_text(f"import sys\nsys.chatglm_trap = {name!r}\nraise SystemExit\n")
    options = {} if trust_remote_code is None else {"trust_remote_code": trust_remote_code}
    assert type(AutoConfig.from_pretrained(tmp_path, **options)).__module__.startswith("glmtune.")
    assert type(AutoTokenizer.from_pretrained(tmp_path, **options)) is ChatGLMTokenizer
    for auto_class in (AutoModel, AutoModelForCausalLM):
        assert type(auto_class.from_pretrained(tmp_path, **options)) is ChatGLMForConditionalGeneration
    assert not hasattr(sys, "chatglm_trap")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "tokenizer.model"),
        (b"", "not a sentencepiece model"),
        (b"garbage", "not a sentencepiece model"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
    ids=["none", "empty", "garbage", "pointer"],
)
def test_a_broken_tokenizer_model(tokenizer_folder, tmp_path, content, expected) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes((tokenizer_folder / "tokenizer_config.json").read_bytes())
    if content is not None:
        (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ModelError, match=expected):
        ChatGLMTokenizer(vocab_file=str(tmp_path / "tokenizer.model"))
    if content is not None:
        with pytest.raises(ModelError, match=expected):
            AutoTokenizer.from_pretrained(tmp_path)


def test_special_tokens_mask(tokenizer) -> None:
    for texts, expected in ((("你好",), [1, 1]), (("你好", "hello"), [1, 1, 1])):
        encoded = tokenizer(*texts, return_special_tokens_mask=True)
        mask = encoded["special_tokens_mask"]
        assert len(mask) == len(encoded["input_ids"])
        assert mask[:2] == [1, 1]
        assert [bit for bit in mask if bit] == expected
        assert mask[-1] == len(texts) - 1
    ids = encoded["input_ids"]
    assert tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True) == mask


def test_the_official_names_of_sentencepieces_own_tokens(tokenizer) -> None:
    found = [tokenizer.get_command(token) for token in ("<unk>", "<pad>", "<bos>", "<eos>", "</s>")]
    assert found == [0, 0, tokenizer.sp_model.bos_id(), tokenizer.eos_token_id, tokenizer.eos_token_id]


def test_the_official_class_can_be_made_of_what_is_saved(tokenizer, tmp_path: Path) -> None:
    """Its special tokens are properties without a setter, which a saved configuration must not set."""
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert not {"eos_token", "pad_token", "unk_token", "bos_token"} & saved.keys()
    assert not (tmp_path / "special_tokens_map.json").exists()
