"""Fine-tune ChatGLM3-6B and its family with LoRA: from a JSON file of instructions to a model that answers.

Importing the package is instant. It makes transformers' Auto classes load `chatglm` folders natively, whether
transformers is imported before or after it.
"""

from __future__ import annotations

import importlib
import sys

from glmtune.errors import AdapterError, ConfigError, DataError, GlmtuneError, ModelError, TrainingError

TYPE_CHECKING = False  # that of typing would take as long to import as all else here
if TYPE_CHECKING:
    from typing import Any

    from glmtune.api import evaluate, load, merge, train
    from glmtune.inference.chat import Chat
    from glmtune.prompts import Conversation, Message

__version__ = "0.1.0"

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


class _RegisterWhenImported:
    """A finder on `sys.meta_path` that registers our Auto classes as soon as transformers has been imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Finds transformers as the other finders do; nothing else is found here."""
        if name != "transformers":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                _register_auto_classes()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this import's own loader
        return spec


def _register_auto_classes() -> None:
    from glmtune.models.registration import register_auto_classes

    register_auto_classes()


if "transformers" in sys.modules:
    _register_auto_classes()
else:
    sys.meta_path.insert(0, _RegisterWhenImported())
