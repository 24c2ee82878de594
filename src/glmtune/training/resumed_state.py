"""What of a checkpoint's state is overruled by the settings of now, and what is remembered that Trainer forgets."""

from pathlib import Path
from typing import Any

import transformers
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from glmtune.adapters.checkpoints import evaluations_without_gain
from glmtune.adapters.run_folder import checkpoints


class ResumedState(TrainerCallback):
    """Puts a state that was read from a checkpoint under the settings of now."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the intervals of now, and makes sure that the best checkpoint is there."""
        state.compute_steps(args, state.max_steps)
        if state.best_global_step is not None and state.best_model_checkpoint is None:
            # Trainer did not find it: the run folder has moved, or it was deleted, and the best of the rest is wanted.
            moved = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            if moved in checkpoints(args.output_dir):
                state.best_model_checkpoint = str(moved)
            else:
                state.best_metric = state.best_global_step = None


class EarlyStoppingCallback(transformers.EarlyStoppingCallback):  # type: ignore[misc]
    """As in transformers, under whose name its state is saved; a resumed run counts on, with the patience of now."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes over how many evaluations in a row were no better."""
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience_counter = evaluations_without_gain(state.stateful_callbacks)
        # Trainer fails to save what it has not found in the checkpoint.
        state.stateful_callbacks[type(self).__name__] = self.state()
