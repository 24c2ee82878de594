"""transformers' Trainer, taught how adapters are saved and when to stop. Nothing of its loop is changed."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer

from glmtune.errors import TrainingError
from glmtune.training.guard import FiniteGuard, probable_cause
from glmtune.tuning.adapter_files import load_adapter_weights, save_adapter
from glmtune.tuning.run_folder import RunManifest, checkpoints


class LoraTrainer(Trainer):
    """A Trainer for a model from `attach_lora`.

    - A step whose gradient is not finite changes neither weights nor optimiser, and stops the run when the host next
      looks: when logging, and before every save. What has been saved is therefore always sound.
    - Checkpoints hold the adapter for the base as published, and the run's manifest.
    - Log lines say how many tokens a second were trained on; neither padding nor the time for evaluating and saving
      counts.

    Args:
        initial_weights: What `initial_adapter_weights` gave after attaching.
        manifest: The run's manifest.
        base_dtype: How the base is held.
        **kwargs: As for `transformers.Trainer`.

    Attributes:
        initial_weights: As given.
    """

    def __init__(
        self,
        *,
        initial_weights: Mapping[str, Tensor],
        manifest: RunManifest,
        base_dtype: torch.dtype,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.initial_weights = initial_weights
        self._manifest = manifest
        self._base_dtype = base_dtype
        self._guard = FiniteGuard(self.args.device, is_scaled=self.args.fp16)
        self._num_tokens = torch.zeros((), dtype=torch.int64, device=self.args.device)
        self._counting_since_s = time.perf_counter()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """As in Trainer; counts the tokens of the batch."""
        real = inputs["attention_mask"] if "attention_mask" in inputs else torch.ones_like(inputs["input_ids"])
        self._num_tokens += real.sum().to(self._num_tokens.device, non_blocking=True)
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As in Trainer, right before the optimiser's step; makes that a no-op where the norm is not finite."""
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if grad_norm is None:
            return grad_norm
        norm = torch.as_tensor(grad_norm, device=self.args.device)
        is_bad = self._guard.observe(norm, self.state.global_step + 1)
        if not self._guard.is_scaled and not self.is_deepspeed_enabled:
            optimizer = self.optimizer.optimizer  # within accelerate's wrapper
            if optimizer.defaults.get("fused"):
                # The field that GradScaler sets: fused kernels leave everything as it is where it is 1.
                optimizer.found_inf = is_bad.float()
            elif is_bad.item():
                model.zero_grad(set_to_none=True)  # optimisers leave alone what has no gradient
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in Trainer; adds `tokens_per_second`, and stops the run where a loss is not finite."""
        if "loss" in logs:
            elapsed_s = time.perf_counter() - self._counting_since_s
            num_tokens = self._num_tokens.item() * self.args.world_size
            logs["tokens_per_second"] = round(num_tokens / max(elapsed_s, 1e-9), 1)
            self._num_tokens.zero_()
            self._counting_since_s = time.perf_counter()
        super().log(logs, start_time)
        for name in ("loss", "eval_loss"):
            if name in logs and not math.isfinite(logs[name]):
                self._stop(f"{name} is {logs[name]} at step {self.state.global_step}", self._guard.bad_step())
        if "loss" in logs:
            self._stop_if_stuck()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in Trainer, off the clock."""
        with self._off_the_clock():
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._off_the_clock():
            super()._save_checkpoint(*args, **kwargs)

    @contextmanager
    def _off_the_clock(self) -> Iterator[None]:
        """Sets the clock of `tokens_per_second` forward by as long as something else takes."""
        self._num_tokens.item()  # the device finishes what it is still training on
        began_s = time.perf_counter()
        yield
        self._counting_since_s += time.perf_counter() - began_s

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in Trainer, unless a gradient was not finite since the last look."""
        self._stop_if_stuck()
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            folder = output_dir or self.args.output_dir
            save_adapter(self.adapted_model(), folder, self.initial_weights, state_dict)
            self._manifest.write(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_adapter_weights(self.adapted_model(), resume_from_checkpoint, self.initial_weights)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            load_adapter_weights(self.adapted_model(), self.state.best_model_checkpoint, self.initial_weights)

    def adapted_model(self) -> PeftModel:
        """The model without what accelerate and torch.compile have put around it."""
        model: PeftModel = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model

    def _stop_if_stuck(self) -> None:
        if (step := self._guard.bad_step()) is not None:
            self._stop("the gradient is not finite", step)

    def _stop(self, what: str, since_step: int | None) -> None:
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        cause = probable_cause(
            base_dtype=self._base_dtype,
            losses=losses,
            learning_rate=self.args.learning_rate,
            max_grad_norm=self.args.max_grad_norm,
        )
        when = f" (from step {since_step} on)" if since_step is not None else ""
        raise TrainingError(f"training stopped: {what}{when}. Probable cause: {cause}.\n{self.last_good()}")

    def last_good(self) -> str:
        """A sentence that names the newest checkpoint."""
        saved = checkpoints(self.args.output_dir)
        if not saved:
            return "No checkpoint had been saved yet."
        return f"The last good checkpoint is {Path(self.args.output_dir) / saved[-1].name}."
