"""Fine-tune ChatGLM3-6B and its family with LoRA: from a JSON file of instructions to a model that answers.

Importing the package is instant. It makes transformers' Auto classes load `chatglm` folders natively, whether
transformers is imported before or after it.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

import wrapt

from glmtune.errors import AdapterError, ConfigError, DataError, GlmtuneError, ModelError, TrainingError

if TYPE_CHECKING:
    from glmtune.api import evaluate, load, merge, train
    from glmtune.inference.chat import Chat
    from glmtune.prompts import Conversation, Message

__version__ = "0.1.0"

# On a CPU, bitsandbytes warns about an unused package as soon as PEFT imports it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

__all__ = [
    "AdapterError",
    "Chat",
    "ConfigError",
    "Conversation",
    "DataError",
    "GlmtuneError",
    "Message",
    "ModelError",
    "TrainingError",
    "__version__",
    "evaluate",
    "load",
    "merge",
    "train",
]

_LAZY = {
    "Chat": "glmtune.inference.chat",
    "Conversation": "glmtune.prompts",
    "Message": "glmtune.prompts",
    "evaluate": "glmtune.api",
    "load": "glmtune.api",
    "merge": "glmtune.api",
    "train": "glmtune.api",
}


def __dir__() -> list[str]:
    """The public names, without the submodules that have been imported."""
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, since torch and transformers take seconds to import."""
    if name not in _LAZY:
        raise AttributeError(f"module 'glmtune' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


@wrapt.when_imported("transformers")
def _register_auto_classes(_: Any) -> None:
    from glmtune.models.registration import register_auto_classes

    register_auto_classes()
