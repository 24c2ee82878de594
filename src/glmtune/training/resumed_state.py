"""The best checkpoint of a resumed run, whose folder may have moved."""

from pathlib import Path

from transformers import TrainerState

from glmtune.adapters.run_folder import checkpoints


def find_best_again(state: TrainerState, output_dir: str | Path) -> None:
    """Finds the best checkpoint of a run whose folder may have moved; if it was deleted, none has been the best yet.

    Args:
        state: The state as read from a checkpoint, which names the best one by an absolute path.
        output_dir: The run folder.
    """
    if state.best_global_step is None:
        return
    here = Path(output_dir) / f"checkpoint-{state.best_global_step}"
    if here in checkpoints(output_dir):
        state.best_model_checkpoint = str(here)
    elif state.best_model_checkpoint is None or not Path(state.best_model_checkpoint).is_dir():
        state.best_model_checkpoint = state.best_metric = state.best_global_step = None
