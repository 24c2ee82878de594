"""The inputs of a run, except the base: settings, tokenizer, data, and the run to resume."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from transformers import TrainingArguments

from glmtune.adapters.checkpoints import sweep
from glmtune.adapters.run_folder import RunManifest, current_versions
from glmtune.compat import use_one_gpu
from glmtune.config import RunConfig, embedded_base, say_base, say_data
from glmtune.data.run_data import RunData, load_run_data
from glmtune.data.skipped import SKIPPED_NAME, write_skipped
from glmtune.errors import ConfigError
from glmtune.loading.base_weights import fingerprint_base
from glmtune.loading.devices import resolve_dtype
from glmtune.loading.formats import check_quantize
from glmtune.models.tokenizer import Tokenizer
from glmtune.planning.planned import PlannedRun
from glmtune.planning.resume import EarlierRun
from glmtune.planning.start import read_start
from glmtune.training.arguments import make_arguments


@dataclass(frozen=True)
class RunInputs:
    """The inputs of a run.

    Attributes:
        config: The configuration, for the plan; settings that the plan decides may still be `auto`.
        arguments: The Trainer's arguments.
        dtype: The compute dtype of the base.
        tokenizer: The base's tokenizer.
        data: The data.
        base_fingerprint: Tells whether the base's weights are still the same.
        earlier: The run to resume, if there is one.
    """

    config: RunConfig
    arguments: TrainingArguments
    dtype: torch.dtype
    tokenizer: Tokenizer
    data: RunData
    base_fingerprint: str
    earlier: EarlierRun | None

    def manifest(self, planned: PlannedRun) -> RunManifest:
        """The record of a run that was planned for these inputs."""
        config = planned.config
        path = config.model.path
        template: Any = config.prompt.template  # `auto` has been resolved
        before = None if self.earlier is None else self.earlier.manifest
        return RunManifest(
            base_path=str(Path(path).resolve()) if path is not None and Path(path).is_dir() else path,
            template=template,
            system=config.prompt.system,
            data_fingerprint=self.data.stats.fingerprint,
            config=config.model_dump(mode="json"),
            versions=current_versions(),
            base_fingerprint=self.base_fingerprint,
            # Evaluation may be left out for a while; what was the best so far was found with these data all the same.
            eval_fingerprint=self.data.eval_fingerprint or ("" if before is None else before.eval_fingerprint),
            num_overlong=self.data.stats.num_overlong,
        )


def read_inputs(config: RunConfig, console: Console) -> RunInputs:
    """Reads all inputs of a run and checks that they are consistent.

    Args:
        config: The configuration.
        console: Where a summary is shown.

    Raises:
        GlmtuneError: Configuration, data, tokenizer or adapter are invalid.
    """
    if _writes_here(config.train):
        sweep(Path(str(config.train["output_dir"])).expanduser())
    _say(console, say_base(config.model.path))
    start = read_start(config)
    config = start.config
    if config.model.quantize != "auto":
        check_quantize(config.model.quantize, config.lora)
    dtype = _compute_dtype(config)
    arguments = make_arguments(
        config.train,
        has_eval=config.data.eval_path is not None or config.data.eval_fraction > 0,
        dtype=dtype,
        trains_base_modules=config.lora.get("bias", "none") != "none" or bool(config.lora.get("modules_to_save")),
    )
    use_one_gpu(arguments)  # several GPUs are used through torchrun, not DataParallel
    with arguments.main_process_first(desc="reading the data"):
        data = load_run_data(config, start.tokenizer, arguments.seed)
    for line in (*say_data(config.data.path), *data.stats.lines(), data.split_line()):
        _say(console, line)
    if data.skipped and _writes_here(config.train):
        write_skipped(data.skipped, skipped := Path(arguments.output_dir) / SKIPPED_NAME)
        _say(console, f"rows that were left out, with the reasons: {skipped}")
    base_fingerprint = fingerprint_base(config.model.path or embedded_base())
    return RunInputs(config, arguments, dtype, start.tokenizer, data, base_fingerprint, start.earlier)


def _writes_here(train: dict[str, Any]) -> bool:
    """Whether this process writes checkpoints, by the rule of `TrainingArguments.should_save`."""
    state = PartialState()
    return bool(state.is_local_main_process if train.get("save_on_each_node") else state.is_main_process)


def _compute_dtype(config: RunConfig) -> torch.dtype:
    device_map = "cpu" if config.train.get("use_cpu") else None
    dtype = resolve_dtype(config.model.dtype, device_map)
    if dtype == torch.float16 and (device_map == "cpu" or not torch.cuda.is_available()):
        raise ConfigError("model.dtype=float16 needs a GPU; on the CPU use float32 or bfloat16")
    return dtype


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
