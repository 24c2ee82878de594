"""Tiny ChatGLM models and a tiny tokenizer, made on the spot, so that these tests need no files."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMTokenizer

sys.path.append(str(Path(__file__).parent))  # for official_twin

MakeModel = Callable[..., ChatGLMForConditionalGeneration]

SIZES = {
    "num_layers": 2,
    "padded_vocab_size": 640,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "kv_channels": 16,
    "num_attention_heads": 4,
    "seq_length": 256,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "add_qkv_bias": True,
}
CORPUS = [
    "你好，我是一个人工智能助手。今天天气怎么样？",
    "小姐，别的秀女都在求中选，唯有咱们小姐想被撂牌子，菩萨一定记得真真儿的——",
    "嘘——都说许愿说破是不灵的。",
    "Hello, I am an assistant. What is the weather like in Beijing today? The quick brown fox jumps over the lazy dog.",
    "asop bsop csop dsop esop fsop 1sop 2sop",  # "sop" becomes a piece, which is not the token sop
    "def tool_call(**kwargs): return kwargs  # 0123456789",
]


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """Makes a tiny random model in fp32 and evaluation mode; keyword arguments are configuration keys."""

    def make(attention: str = "sdpa", seed: int = 0, **keys: Any) -> ChatGLMForConditionalGeneration:
        config = ChatGLMConfig(**{**SIZES, "eos_token_id": None, "attn_implementation": attention, **keys})
        torch.manual_seed(seed)
        model = ChatGLMForConditionalGeneration(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # biases and norms too, or a forgotten one would not show
                parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if parameter.ndim == 1 else 0.0))
        return model

    return make


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sentencepiece model of the official kind, and the published tokenizer_config.json's keys."""
    folder = tmp_path_factory.mktemp("tokenizer")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=600,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    published = {
        "name_or_path": "THUDM/chatglm3-6b",
        "remove_space": False,
        "do_lower_case": False,
        "tokenizer_class": "ChatGLMTokenizer",
        "chat_template": "{% for message in messages %}[gMASK]sop<|{{ message['role'] }}|> \n {{ message['content'] }}"
        "{% endfor %}",
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(published), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> ChatGLMTokenizer:
    """The tiny tokenizer. Tests must not change it."""
    return ChatGLMTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="session")
def official_folder(make_model: MakeModel, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model laid out as the official folders are, the `auto_map` of config.json included."""
    folder = tmp_path_factory.mktemp("official")
    make_model(eos_token_id=2, initializer_range=0.02).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    for file in tokenizer_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["ChatGLMModel"]
    config["torch_dtype"] = config.pop("dtype")
    config["auto_map"] = {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
        "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
