"""ChatGLM2 and ChatGLM3, native: configuration, model and tokenizer."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from glmtune.models.chatglm.configuration import ChatGLMConfig
from glmtune.models.chatglm.modeling import ChatGLMForConditionalGeneration, ChatGLMModel
from glmtune.models.chatglm.tokenization import ChatGLMTokenizer, IncrementalDecoder

__all__ = [
    "ChatGLMConfig",
    "ChatGLMForConditionalGeneration",
    "ChatGLMModel",
    "ChatGLMTokenizer",
    "IncrementalDecoder",
    "register_auto_classes",
]


class _TokenizerKey(PretrainedConfig):
    """Under which the tokenizer is registered.

    With ChatGLMConfig itself as the key, transformers would prefer the Python files of an official folder to our class
    wherever somebody passes `trust_remote_code=True`.
    """

    model_type = "chatglm-tokenizer"


def register_auto_classes() -> None:
    """Makes transformers' Auto classes load `chatglm` folders with the classes here. Doing it twice is harmless."""
    AutoConfig.register("chatglm", ChatGLMConfig, exist_ok=True)
    # The official folders map both to the model with the head, which is the one that has `chat`.
    AutoModel.register(ChatGLMConfig, ChatGLMForConditionalGeneration, exist_ok=True)
    AutoModelForCausalLM.register(ChatGLMConfig, ChatGLMForConditionalGeneration, exist_ok=True)
    AutoTokenizer.register(_TokenizerKey, ChatGLMTokenizer, exist_ok=True)
