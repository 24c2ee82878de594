"""The `glmtune` command. Every handler imports what it needs itself, so that help and usage errors are instant."""

from glmtune.cli.app import main

__all__ = ["main"]
