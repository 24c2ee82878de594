"""The `glmtune` command. Every handler imports what it needs itself, so that help and mistakes answer at once."""

from glmtune.cli.app import main

__all__ = ["main"]
