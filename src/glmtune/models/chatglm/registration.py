"""Registers the classes here with transformers' Auto classes.

A separate module, because it runs as soon as transformers is imported, possibly during the import of this package.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
)

from glmtune.models.chatglm.configuration import ChatGLMConfig
from glmtune.models.chatglm.modeling import ChatGLMForConditionalGeneration, ChatGLMForSequenceClassification
from glmtune.models.chatglm.tokenization import ChatGLMTokenizer


class _TokenizerKey(PretrainedConfig):
    """The key that the tokenizer is registered under.

    With ChatGLMConfig itself as the key, transformers would prefer the Python files of an official folder to our class
    whenever `trust_remote_code=True` is passed.
    """

    model_type = "chatglm-tokenizer"


def register_auto_classes() -> None:
    """Makes transformers' Auto classes load `chatglm` folders with the classes here. Repeated calls are harmless."""
    AutoConfig.register("chatglm", ChatGLMConfig, exist_ok=True)
    # The official folders map all three to the model with the head, which is the one that has `chat`.
    for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM):
        auto_class.register(ChatGLMConfig, ChatGLMForConditionalGeneration, exist_ok=True)
    AutoModelForSequenceClassification.register(ChatGLMConfig, ChatGLMForSequenceClassification, exist_ok=True)
    AutoTokenizer.register(_TokenizerKey, ChatGLMTokenizer, exist_ok=True)
