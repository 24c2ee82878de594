"""A tokenizer small enough to check by eye, a small data set, and small models to compute with."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel
from torch.nn import functional as F

from glmtune.adapters.lora import attach_lora
from glmtune.data.packing import PackingCollator
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.training.packed_model import PackedModel

SPECIAL = ["<unk>", "<s>", "</s>", "[gMASK]", "sop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]


class LetterTokenizer:
    """One id a letter, its code point plus the number of special tokens, so that ids can be read back exactly."""

    eos_token_id = SPECIAL.index("</s>")
    prefix_token_ids = [SPECIAL.index("[gMASK]"), SPECIAL.index("sop")]

    def encode_text(self, text: str) -> list[int]:
        return [ord(letter) + len(SPECIAL) for letter in text]

    def decode_text(self, token_ids: list[int]) -> str:
        return "".join(chr(i - len(SPECIAL)) for i in token_ids if i >= len(SPECIAL))

    def get_command(self, token: str) -> int:
        return SPECIAL.index(token)

    def get_vocab(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(SPECIAL)}

    def convert_ids_to_tokens(self, ids: list[int], skip_special_tokens: bool = False) -> list[str]:
        return [SPECIAL[i] if i < len(SPECIAL) else chr(i - len(SPECIAL)) for i in ids]

    def spell(self, ids: list[int]) -> str:
        """All ids as text, special tokens by name."""
        return "".join(self.convert_ids_to_tokens(list(ids)))


@pytest.fixture
def letters() -> LetterTokenizer:
    return LetterTokenizer()


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="session")
def write_questions() -> Callable[[Path], Path]:
    """Writes 24 short questions with their answers into a folder, and returns the file."""

    def write(folder: Path) -> Path:
        rows = [{"instruction": f"第{n}个问题？", "output": f"这是第{n}个回答，没有别的。"} for n in range(24)]
        file = folder / "data.json"
        file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        return file

    return write


@pytest.fixture
def data_file(write_questions: Callable[[Path], Path], tmp_path: Path) -> Path:
    """24 short questions with their answers."""
    return write_questions(tmp_path)


Sample = dict[str, list[int]]


class Computed(NamedTuple):
    """The summed loss of some samples, and its gradients by parameter."""

    loss: float
    gradients: dict[str, torch.Tensor]


def make_base(dtype: torch.dtype = torch.float32) -> ChatGLMForConditionalGeneration:
    """A random model of two layers; the same weights at every call."""
    config = ChatGLMConfig(
        num_layers=2,
        hidden_size=32,
        ffn_hidden_size=48,
        num_attention_heads=4,
        kv_channels=8,
        multi_query_group_num=2,
        padded_vocab_size=96,
        seq_length=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ChatGLMForConditionalGeneration(config).to(dtype)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture
def base() -> ChatGLMForConditionalGeneration:
    return copy.deepcopy(make_base())


@pytest.fixture
def input_ids() -> torch.Tensor:
    return torch.arange(12).reshape(2, 6)


@pytest.fixture
def make_adapted() -> Callable[..., PeftModel]:
    """Makes a random model of three layers with a LoRA adapter that changes it; the same numbers at every call.

    Keyword arguments are for `LoraConfig`; those in `config` for the base.
    """

    def make(dtype: torch.dtype = torch.float64, config: dict[str, Any] | None = None, **lora: Any) -> PackedModel:
        sizes = {
            "num_layers": 3,
            "hidden_size": 32,
            "ffn_hidden_size": 48,
            "num_attention_heads": 4,
            "kv_channels": 16,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "add_qkv_bias": True,
            "padded_vocab_size": 96,
        }
        with torch.random.fork_rng():
            torch.manual_seed(0)
            base = ChatGLMForConditionalGeneration(ChatGLMConfig(**{**sizes, **(config or {})}))
            for parameter in base.parameters():
                torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
            settings = {"r": 4, "lora_alpha": 8, "target_modules": ["query_key_value"], "lora_dropout": 0.0, **lora}
            model = PackedModel(attach_lora(base.to(dtype), settings))
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
                if parameter.requires_grad and dtype == torch.float64:
                    parameter.data = parameter.data.double()
        return model.train()

    return make


@pytest.fixture
def samples() -> list[Sample]:
    """Six samples, three of which begin alike; one speaks twice."""
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(96, (length,), generator=generator).tolist()

    beginning = ids(5)
    made: list[Sample] = []
    for number, length in enumerate((6, 9, 4, 11, 8, 3)):
        input_ids = [*beginning, *ids(length)] if number % 2 else ids(length)
        num_context = max(len(input_ids) // 2, 6 * (number % 2))
        made.append({"input_ids": input_ids, "labels": [-100] * num_context + input_ids[num_context:]})
    made[3]["labels"][9] = made[3]["labels"][10] = -100
    return made


@pytest.fixture
def alone() -> Callable[[PeftModel, list[Sample]], Computed]:
    """Computes each sample by itself, through PEFT's own modules, with torch's cross entropy."""

    def compute(model: PeftModel, samples: list[Sample]) -> Computed:
        model.zero_grad()
        total = 0.0
        for sample in samples:
            logits = model(input_ids=torch.tensor([sample["input_ids"]])).logits[0]
            loss = F.cross_entropy(logits[:-1], torch.tensor(sample["labels"][1:]), reduction="sum")
            loss.backward()
            total += loss.item()
        return Computed(total, _gradients(model))

    return compute


@pytest.fixture
def packed() -> Callable[..., Computed]:
    """Computes samples packed as the keyword arguments of `PackingCollator` say."""

    def compute(model: PeftModel, samples: list[Sample], **collator: Any) -> Computed:
        model.zero_grad()
        total = 0.0
        for rows in PackingCollator(**collator)(samples)["micro_batches"]:
            loss = model(packed=rows)
            loss.backward()
            total += loss.item()
        return Computed(total, _gradients(model))

    return compute


def _gradients(model: PeftModel) -> dict[str, torch.Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is not None
    }
