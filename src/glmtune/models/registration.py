"""Registers the classes of all families with transformers' Auto classes.

It runs the moment transformers is imported, so it imports no more than it must.
"""

from glmtune.models.chatglm.registration import register_auto_classes

__all__ = ["register_auto_classes"]
