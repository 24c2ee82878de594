"""The tiny base, loaded once."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from glmtune.models.chatglm import ChatGLMForConditionalGeneration, ChatGLMTokenizer, register_auto_classes


class Tiny(NamedTuple):
    model: ChatGLMForConditionalGeneration
    tokenizer: ChatGLMTokenizer


@pytest.fixture(scope="session")
def tiny(tiny_base: Path) -> Tiny:
    """A random model: it talks nonsense, and never stops by itself."""
    register_auto_classes()
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    return Tiny(model, AutoTokenizer.from_pretrained(tiny_base))
