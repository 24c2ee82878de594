"""The functions behind `glmtune.train`, `glmtune.load`, `glmtune.evaluate` and `glmtune.merge`."""

from pathlib import Path
from typing import Any

from glmtune.config import load_arguments
from glmtune.data.weights import Paths
from glmtune.evaluation.evaluate import Runs
from glmtune.evaluation.evaluate import evaluate as evaluate_runs
from glmtune.evaluation.results import Evaluation
from glmtune.export.merge import MergeResult
from glmtune.export.merge import merge as merge_run
from glmtune.loading.runs import load as load_run
from glmtune.models.tokenizer import Tokenizer
from glmtune.training.run import TrainResult
from glmtune.training.run import train as train_config


def train(config: str | Path | None = None, *overrides: str) -> TrainResult:
    """Trains an adapter.

    Args:
        config: A YAML file, or an override, as on the command line; None for the defaults, which train on the embedded
            tiny base.
        *overrides: `section.key=value` settings, which take precedence over the file.

    Returns:
        The run folder, the losses and other figures of the run.

    Raises:
        GlmtuneError: The configuration, the data or the model is wrong, or training had to stop.
    """
    return train_config(load_arguments(overrides if config is None else (config, *overrides)))


def load(run: str | Path, *, model_path: str | Path | None = None, **options: Any) -> tuple[Any, Tokenizer]:
    """Loads a run folder, a `checkpoint-N`, a stock PEFT adapter or a base folder, ready to answer.

    Args:
        run: The folder.
        model_path: Where the base is now, if it has moved since the run.
        **options: Passed to `glmtune.loading.runs.load`: `dtype`, `device_map`, `quantize`.

    Returns:
        Model and tokenizer. `glmtune.Chat(model, tokenizer)` uses the run's template and system prompt.

    Raises:
        ModelError: The folder or the base cannot be loaded.
        AdapterError: The adapter does not fit the base.
    """
    loaded = load_run(run, model_path=model_path, **options)
    return loaded.model, loaded.tokenizer


def evaluate(runs: Runs, data: Paths | None = None, **options: Any) -> Evaluation:
    """Evaluates one or several runs, each beside its base; see `glmtune.evaluation.evaluate.evaluate`.

    Args:
        runs: Run folders, checkpoints, adapters or bases.
        data: Data files of any training format, with the reference answers.
        **options: `count`, `choices`, `general`, `output` and the others.

    Returns:
        The metrics of every model, the differences of each run from its base, and the answers.
    """
    return evaluate_runs(runs, data, **options)


def merge(run: str | Path, output: str | Path, **options: Any) -> MergeResult:
    """Merges a run into its full-precision base and checks the result; see `glmtune.export.merge.merge`."""
    return merge_run(run, output, **options)
