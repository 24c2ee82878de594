"""The inputs of a run, except the base: settings, tokenizer, data, and the run to resume."""

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from glmtune.compat import use_one_gpu
from glmtune.config import say_data
from glmtune.data.run_data import RunData, load_run_data
from glmtune.data.skipped import SKIPPED_NAME, write_skipped
from glmtune.errors import ConfigError
from glmtune.language.plurals import count
from glmtune.loading.base_weights import fingerprint_base
from glmtune.loading.devices import Dtype, resolve_dtype
from glmtune.loading.formats import check_package
from glmtune.models.tokenizer import Tokenizer
from glmtune.planning.resume import EarlierRun
from glmtune.planning.start import Start
from glmtune.training.arguments import make_arguments
from glmtune.training.hub_upload import check_upload
from glmtune.training.trackers import RunArguments


@dataclass(frozen=True)
class RunInputs:
    """The inputs of a run.

    Attributes:
        arguments: The Trainer's arguments.
        dtype: The compute dtype of the base.
        tokenizer: The base's tokenizer.
        data: The data.
        base_fingerprint: Tells whether the base's weights are still the same.
        earlier: The run to resume, if there is one.
    """

    arguments: RunArguments
    dtype: torch.dtype
    tokenizer: Tokenizer
    data: RunData
    base_fingerprint: str
    earlier: EarlierRun | None


def read_inputs(start: Start, console: Console) -> RunInputs:
    """Reads all inputs of a run and checks that they are consistent.

    Args:
        start: What the run starts from.
        console: Where a summary is shown.

    Raises:
        GlmtuneError: Configuration, data or base are invalid.
    """
    config = start.config
    if config.model.quantize != "auto":
        check_package(config.model.quantize)
    dtype = _compute_dtype(config.model.dtype, on_cpu=bool(config.train.get("use_cpu")))
    arguments = make_arguments(
        config.train,
        has_eval=config.data.eval_path is not None or config.data.eval_fraction > 0,
        dtype=dtype,
        trains_base_modules=config.lora.get("bias", "none") != "none" or bool(config.lora.get("modules_to_save")),
    )
    check_upload(arguments)
    use_one_gpu(arguments)  # several GPUs are used through torchrun, not DataParallel
    with arguments.main_process_first(desc="reading the data"):
        looks = arguments.process_index == 0
        data = load_run_data(config.data, config.prompt, start.tokenizer, arguments.seed, looks=looks)
    for line in (*say_data(config.data.path), *data.stats.lines(), data.split_line()):
        _say(console, line)
    if data.findings:
        _say(console, f"worth a look: {count(len(data.findings), 'findings')} in the data, which the report shows")
    if data.skipped and arguments.should_save:
        write_skipped(data.skipped, skipped := Path(arguments.output_dir) / SKIPPED_NAME)
        _say(console, f"rows that were left out, with the reasons: {skipped}")
    base_fingerprint = fingerprint_base(config.model.path)
    return RunInputs(arguments, dtype, start.tokenizer, data, base_fingerprint, start.earlier)


def _compute_dtype(asked: Dtype, *, on_cpu: bool) -> torch.dtype:
    device_map = "cpu" if on_cpu else None
    dtype = resolve_dtype(asked, device_map)
    if dtype == torch.float16 and (on_cpu or not torch.cuda.is_available()):
        raise ConfigError("model.dtype=float16 needs a GPU; on the CPU use float32 or bfloat16")
    return dtype


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
