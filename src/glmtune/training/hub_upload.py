"""Uploading a run to the model hub: checked before anything is computed, and never at the cost of the run."""

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from transformers import Trainer, TrainingArguments

from glmtune.errors import ConfigError, TrainingError, show_text

_logger = logging.getLogger(__name__)


def check_upload(arguments: TrainingArguments) -> None:
    """Checks that a run which is to be uploaded can be: that the hub answers, and knows the user.

    Raises:
        ConfigError: It does not.
    """
    if not arguments.push_to_hub or arguments.process_index != 0:
        return
    try:
        HfApi().whoami(token=arguments.hub_token)
    except Exception as error:  # the hub's client raises those of several libraries
        raise ConfigError(
            f"train.push_to_hub: the run could not be uploaded to the hub: {_reason(error)}. Check the network and "
            "log in with hf auth login; or leave train.push_to_hub out, and upload the run folder afterwards"
        ) from error


@contextmanager
def upload_only_warns(checkpoint: Path) -> Iterator[None]:
    """Training goes on where a checkpoint cannot be uploaded: a warning says so."""
    try:
        yield
    except Exception as error:
        _logger.warning("%s could not be uploaded to the hub: %s", checkpoint, _reason(error))


def upload(trainer: Trainer) -> None:
    """Uploads the run folder of a finished run, if that was asked for.

    Raises:
        TrainingError: It cannot be uploaded; says that the run is kept.
    """
    folder = str(trainer.args.output_dir)
    if not trainer.args.push_to_hub:
        return
    try:
        trainer.push_to_hub(revision=trainer.args.hub_revision)
    except Exception as error:  # whatever it is, the run is there
        name = trainer.hub_model_id or "OWNER/NAME"
        raise TrainingError(
            f"the run is finished, and kept in {folder}, but it could not be uploaded to the hub: {_reason(error)}.\n"
            f"To upload it:\n  {shlex.join(['hf', 'upload', name, folder])}"
        ) from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return show_text(lines[0].rstrip("."), 300) if lines else type(error).__name__
