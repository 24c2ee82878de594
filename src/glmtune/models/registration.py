"""Registers the classes of all families with transformers' Auto classes.

It runs as soon as transformers is imported, so it imports as little as possible.
"""

import logging

from glmtune.models.chatglm.registration import register_auto_classes

__all__ = ["register_auto_classes"]

# On a CPU, bitsandbytes warns about an unused package as soon as PEFT, which takes transformers, imports it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
