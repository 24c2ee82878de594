"""Native implementation of ChatGLM2 and ChatGLM3: configuration, model and tokenizer."""

import transformers  # noqa: F401  (before the modules below: its import makes glmtune register the classes in them)

from glmtune.models.chatglm.configuration import ChatGLMConfig
from glmtune.models.chatglm.modeling import ChatGLMForConditionalGeneration, ChatGLMModel
from glmtune.models.chatglm.registration import register_auto_classes
from glmtune.models.chatglm.tokenization import ChatGLMTokenizer
from glmtune.models.incremental import IncrementalDecoder

__all__ = [
    "ChatGLMConfig",
    "ChatGLMForConditionalGeneration",
    "ChatGLMModel",
    "ChatGLMTokenizer",
    "IncrementalDecoder",
    "register_auto_classes",
]
