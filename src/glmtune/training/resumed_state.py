"""The state of a resumed run: current settings override the checkpoint's, and state that Trainer drops is restored."""

from pathlib import Path
from typing import Any

import transformers
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from glmtune.adapters.checkpoints import evaluations_without_gain
from glmtune.adapters.run_folder import checkpoints


class ResumedState(TrainerCallback):
    """Applies the current settings to a state that was read from a checkpoint."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sets the current intervals, and checks that the best checkpoint still exists."""
        state.compute_steps(args, state.max_steps)
        if state.best_global_step is not None and state.best_model_checkpoint is None:
            # Trainer did not find it: the run folder has moved, or it was deleted and the best of the rest is wanted.
            moved = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            if moved in checkpoints(args.output_dir):
                state.best_model_checkpoint = str(moved)
            else:
                state.best_metric = state.best_global_step = None


class EarlyStoppingCallback(transformers.EarlyStoppingCallback):  # type: ignore[misc]
    """As in transformers, under whose name its state is saved; a resumed run keeps its count, but not its patience."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restores the number of consecutive evaluations without improvement."""
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience_counter = evaluations_without_gain(state.stateful_callbacks)
        # Trainer fails to save a callback's state that the checkpoint did not contain.
        state.stateful_callbacks[type(self).__name__] = self.state()
