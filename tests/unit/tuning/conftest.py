import copy

import pytest
import torch

from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration


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
