"""Registers the classes of all families with transformers' Auto classes.

It runs as soon as transformers is imported, so it imports as little as possible.
"""

from glmtune.models.chatglm.registration import register_auto_classes

__all__ = ["register_auto_classes"]
