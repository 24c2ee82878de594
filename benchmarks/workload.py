"""What the benchmarks train: a model of ChatGLM3-6B's true shape with random weights, and real samples.

The published tokenizer is not part of the repository, so one is made from the data themselves, with as many pieces
(18,000) as give samples of a realistic length: 52 tokens on average, the median 48, 18 of them in the answer.
"""

import json
from pathlib import Path

import sentencepiece
import torch
from datasets import Dataset
from full_shape import chatglm3_6b_config

from glmtune.data.dataset import load_dataset
from glmtune.models.chatglm import ChatGLMForConditionalGeneration, ChatGLMTokenizer

SYSTEM_PROMPT = "现在你要扮演皇帝身边的女人--甄嬛"
_NUM_PIECES = 18_000


def random_model(device: str, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> ChatGLMForConditionalGeneration:
    """ChatGLM3-6B's shape: norms 1, biases 0, the rest N(0, 0.02), made on the device in seconds."""
    with torch.device("meta"):
        model = ChatGLMForConditionalGeneration(chatglm3_6b_config()).to(dtype)
    model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layernorm" in name:
                parameter.fill_(1)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(std=0.02, generator=generator)
    return model


def make_tokenizer(data: Path, folder: Path) -> ChatGLMTokenizer:
    """Makes a tokenizer of ChatGLM3's kind from the texts of a data file, in `folder`."""
    rows = json.loads(data.read_text(encoding="utf-8"))
    texts = [f"{row['instruction']}{row['input']}\n{row['output']}" for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, SYSTEM_PROMPT]),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=_NUM_PIECES,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    settings = {"tokenizer_class": "ChatGLMTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return ChatGLMTokenizer.from_pretrained(folder)


def load_samples(data: Path, tokenizer: ChatGLMTokenizer) -> Dataset:
    """The data behind the system prompt, tokenised."""
    dataset, _ = load_dataset(data, tokenizer, system=SYSTEM_PROMPT, max_length=512)
    return dataset
