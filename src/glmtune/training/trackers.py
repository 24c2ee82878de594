"""What experiment trackers (`train.report_to`) get beside Trainer's numbers: all settings, and answers in training."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import SwanLabCallback, TensorBoardCallback

from glmtune.config import OWN_TRAIN_KEYS
from glmtune.evaluation.text_metrics import Answer

_ANSWERS = "eval/answers"


@dataclass
class RunArguments(TrainingArguments):  # type: ignore[misc]
    """The arguments of Trainer. Their record, which every tracker shows, has the settings that are not among them, too.

    Attributes:
        shown_settings: These settings, by their keys.
    """

    shown_settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The record."""
        values: dict[str, Any] = super().to_dict()
        return values | values.pop("shown_settings")


def settings_for_trackers(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that `TrainingArguments` do not hold, by their keys: `lora.r`.

    Args:
        config: The sections of the configuration, as a run records them.
    """
    return {
        f"{name}.{key}": value
        for name, section in config.items()
        for key, value in section.items()
        if name != "train" or key in OWN_TRAIN_KEYS
    }


def start_swanlab(arguments: TrainingArguments) -> None:
    """Starts a run in SwanLab, if it is among the trackers and has none.

    transformers' callback would, but asks first whether there is one, which SwanLab answers with an error since 0.8.

    Args:
        arguments: The arguments of Trainer.
    """
    if "swanlab" not in arguments.report_to or arguments.process_index != 0:
        return
    import swanlab

    try:
        swanlab.get_run()
    except RuntimeError:
        resumes = {"resume": "allow"} if arguments.resume_from_checkpoint else {}
        swanlab.init(project=os.environ.get("SWANLAB_PROJECT"), experiment_name=arguments.run_name, **resumes)


def show_answers(callbacks: Iterable[TrainerCallback], answers: Sequence[Answer], step: int) -> None:
    """Shows answers in the trackers that show texts.

    Args:
        callbacks: The callbacks of Trainer, trackers among them.
        answers: At least one.
        step: Optimiser steps that the model has taken.
    """
    text = "\n\n".join(f"**{each.prompt}**\n\n{each.predict}\n\n({each.label})" for each in answers)
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_text(_ANSWERS, text, step)
        elif isinstance(callback, SwanLabCallback):
            import swanlab

            swanlab.log({_ANSWERS: swanlab.Text(text)}, step=step)
