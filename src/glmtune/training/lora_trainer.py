"""transformers' Trainer, extended with packed batches, flat parameters, adapter checkpoints and a guard.

Its loop is unchanged. For it, a batch is an optimiser step: the samples of all accumulated batches at once, which
`training_step` splits into as many passes as memory requires.
"""

import copy
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Subset
from transformers import Trainer, TrainerState
from transformers.trainer_utils import EvalLoopOutput

from glmtune.adapters.adapter_files import load_adapter_weights, save_adapter
from glmtune.adapters.checkpoints import aside, publish, read_state, rotate, supersede
from glmtune.adapters.lora import count_parameters
from glmtune.adapters.run_folder import STATE_NAME, RunManifest, checkpoints
from glmtune.compat import skip_fused_step
from glmtune.data.packed_batch import PackedBatch
from glmtune.errors import ConfigError, TrainingError
from glmtune.evaluation.in_training import EvaluationQuestions
from glmtune.files import storage_faults
from glmtune.loading.devices import GIB, peak_bytes
from glmtune.planning.optimizers import is_elementwise
from glmtune.training.flat import FlatParameters
from glmtune.training.graphs import GradientAccumulator
from glmtune.training.guard import FiniteGuard, probable_cause
from glmtune.training.hub_upload import upload_only_warns
from glmtune.training.packed_model import PackedModel
from glmtune.training.resumed_state import (
    MEAN_LOSS,
    check_optimizer_state,
    find_best_again,
    mean_loss_before,
    set_schedule,
)
from glmtune.training.trackers import show_answers


class LoraTrainer(Trainer):
    """A Trainer for a `PackedModel` and batches from `PackingCollator`.

    - The loss is the mean over the weights of an optimiser step, on all devices, however its samples are packed.
    - A step whose gradient is not finite changes neither weights nor optimiser, and stops the run at the next check of
      the host: when logging, and before every save. Saved checkpoints are therefore always sound.
    - Checkpoints hold the adapter for the base as published, and the run's manifest.
    - The evaluation loss is the mean over the weights of all samples, whatever the batch size and number of processes.
    - Where there are questions, each evaluation answers them, and their metrics are logged with its loss.
    - Log entries include the tokens trained on per second, without padding and without the time for evaluation and
      saving.

    Args:
        initial_weights: The result of `initial_adapter_weights` after attaching.
        manifest: The run's manifest.
        base_dtype: The dtype of the base.
        uses_graphs: Whether batches are padded to a few buckets, to be computed as CUDA graphs.
        questions: What is asked at each evaluation; None for nothing.
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
        uses_graphs: bool = False,
        questions: EvaluationQuestions | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.optimizer: Any
        self.model.train()  # `from_pretrained` leaves the base in evaluation mode, which PEFT's wrapper does not show
        self._flat: list[FlatParameters] = []
        self._accumulator: GradientAccumulator | None = None
        self._uses_graphs = uses_graphs
        self._questions = questions
        _, num_parameters = count_parameters(self.model)
        self._flops_per_token = 4 * num_parameters  # a frozen base: no weight gradient
        self.initial_weights = initial_weights
        self._manifest = manifest
        self._base_dtype = base_dtype
        self._guard = FiniteGuard(self.args.device, is_scaled=self.args.fp16)
        self._num_tokens = 0
        self._counting_since_s = time.perf_counter()
        self._eval_losses: list[Tensor] = []
        self._eval_weight = 0.0
        self._resumed_step = 0
        self._loss_sum: Tensor = torch.zeros((), dtype=torch.float64, device=self.args.device)  # of all steps so far
        self._has_saved = False

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in Trainer; parameters are flattened if the optimiser is elementwise."""
        if not is_elementwise(self.args.optim.value):
            try:
                return super().create_optimizer(model)
            except (ImportError, ValueError) as error:
                raise ConfigError(f"train.optim={self.args.optim.value}: {error}") from error
        if self.optimizer is None:
            decaying = set(self.get_decay_parameter_names(self.model))
            alike: dict[tuple[float, torch.device, torch.dtype], list[nn.Parameter]] = {}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    weight_decay = self.args.weight_decay if name in decaying else 0.0
                    alike.setdefault((weight_decay, parameter.device, parameter.dtype), []).append(parameter)
            self._flat = [FlatParameters(parameters) for parameters in alike.values()]
            for flat in self._flat:
                flat.copy_from_first_process()
            groups = [
                {"params": [flat.flat], "weight_decay": weight_decay}
                for flat, (weight_decay, *_) in zip(self._flat, alike, strict=True)
            ]
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class(groups, **options)
            self._accumulator = self._make_accumulator()
        return self.optimizer

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        """As in Trainer; without DistributedDataParallel if `training_step` sums the flat gradients itself."""
        if training and self._flat and self.args.world_size > 1:
            return self.accelerator.prepare_model(model, evaluation_mode=True)
        return super()._wrap_model(model, training, dataloader)

    def _make_accumulator(self) -> GradientAccumulator:
        fused = self.adapted_model().fused_layers
        return GradientAccumulator(
            # Through the wrapped model, for the autocast that accelerate may have put around its forward.
            lambda packed: self.model_wrapped(packed=packed),
            [parameter for flat in self._flat for parameter in flat.parameters],
            [gradient for flat in self._flat for gradient in flat.gradients],
            fused.draw_graph_seed if fused is not None else lambda: None,
            uses_graphs=self._uses_graphs and fused is not None,
        )

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Computes the gradients of an optimiser step.

        Args:
            model: The model, as wrapped by accelerate.
            inputs: A batch from `PackingCollator`.
            num_items_in_batch: The sum of the label weights, on all devices if losses are averaged over these.

        Returns:
            The loss, a scalar.
        """
        if not model.training:
            model.train()
        for flat in self._flat:
            flat.begin_step()
        micro_batches: list[PackedBatch] = inputs["micro_batches"]
        self._num_tokens += sum(packed.num_tokens for packed in micro_batches)
        num_devices = self.args.world_size
        # Gradients are averaged over the devices. If the weight counts all devices' samples, that divides by the number
        # of devices once too often.
        weight = num_items_in_batch / num_devices if self._averages_across_devices() else num_items_in_batch
        total = torch.zeros((), device=self.args.device)
        if self._accumulator is not None:
            for packed in micro_batches:
                total += self._accumulator.add(packed, self._scale() / (weight * num_devices))
            for flat in self._flat:
                flat.sum_over_processes()
        else:
            for index, packed in enumerate(micro_batches):
                is_last = index == len(micro_batches) - 1
                with nullcontext() if is_last else self.accelerator.no_sync(model):
                    loss = model(packed=packed)
                    self.accelerator.backward(loss / weight)
                total += loss.detach()
        self._loss_sum += total / weight
        return total / weight

    def _scale(self) -> float | Tensor:
        """The loss scale of float16; 1 otherwise."""
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else scaler.scale(torch.ones((), device=self.args.device))

    def _averages_across_devices(self) -> bool:
        return self.args.world_size > 1 and self.args.average_tokens_across_devices

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        weight = sum(batch["total_weight"] for batch in batch_samples)
        if not self._averages_across_devices():
            return weight
        # Filled on the device: copying a number from the host would wait for all pending kernels.
        return self.accelerator.reduce(torch.full((), weight, device=device), reduction="sum")

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Loads this process's share of the samples; shares do not overlap.

        Trainer's own loader repeats samples until all processes have the same number of batches, or drops the last
        batch.
        """
        samples = self.eval_dataset if eval_dataset is None else eval_dataset
        return DataLoader(
            Subset(samples, range(self.args.process_index, len(samples), self.args.world_size)),
            batch_size=self.args.eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            pin_memory=self.args.dataloader_pin_memory,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
        )

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, None, None]:
        """Records a batch's loss. Trainer gets none, since it would average the means of batches."""
        with torch.no_grad(), self.compute_loss_context_manager():
            for packed in inputs["micro_batches"]:
                on_device = packed.to(self.args.device, non_blocking=True)
                self._eval_losses.append(model(packed=on_device))
        self._eval_weight += inputs["total_weight"]
        return None, None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """As in Trainer; the loss is the mean over all label weights of the data set, on all processes."""
        self._eval_losses, self._eval_weight = [], 0.0
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        total = math.fsum(loss.item() for loss in self._eval_losses)
        totals, weights = zip(*gather_object([(total, self._eval_weight)]), strict=True)
        output.metrics[f"{metric_key_prefix}_loss"] = math.fsum(totals) / math.fsum(weights)
        if self._questions is not None:
            step = self.state.global_step
            found, answers = self._questions.ask(self.adapted_model(), step, gather_object)
            output.metrics.update((f"{metric_key_prefix}_{name}", value) for name, value in found.items())
            if answers and self.is_world_process_zero():
                show_answers(self.callback_handler.callbacks, answers, step)
        return output

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Floating-point operations of a step, without recomputation."""
        return self._flops_per_token * sum(packed.num_tokens for packed in inputs["micro_batches"])

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if not self._flat:
            return super()._clip_grad_norm(model)
        return self.accelerator.clip_grad_norm_([flat.flat for flat in self._flat], self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As in Trainer, right before the optimiser's step, which is skipped if the norm is not finite."""
        if grad_norm is None and self._flat:
            grad_norm = self.accelerator.clip_grad_norm_([flat.flat for flat in self._flat], math.inf)
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if grad_norm is None:
            return grad_norm
        norm = torch.as_tensor(grad_norm, device=self.args.device)
        is_bad = self._guard.observe(norm, self.state.global_step + 1)
        if not self._guard.is_scaled:
            optimizer = self.optimizer.optimizer  # within accelerate's wrapper
            if optimizer.defaults.get("fused"):
                skip_fused_step(optimizer, is_bad)
            elif is_bad.item():
                self.optimizer.zero_grad(set_to_none=True)  # optimisers skip parameters without a gradient
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in Trainer; adds `tokens_per_second`, and stops the run if a loss is not finite."""
        if "train_loss" in logs:  # Trainer has only this process's losses, and none from before the run was resumed
            logs["train_loss"] = self.mean_loss()
        if "loss" in logs:
            elapsed_s = time.perf_counter() - self._counting_since_s
            num_tokens = int(self.accelerator.reduce(torch.full((), self._num_tokens, device=self.args.device)))
            logs["tokens_per_second"] = round(num_tokens / max(elapsed_s, 1e-9), 1)
            if (peak := peak_bytes(self.args.device)) is not None:
                logs["memory_gib"] = round(peak / GIB, 2)
            self._num_tokens = 0
            self._counting_since_s = time.perf_counter()
        super().log(logs, start_time)
        for name in ("loss", "eval_loss"):
            if name in logs and not math.isfinite(logs[name]):
                self._stop(f"{name} is {logs[name]} at step {self.state.global_step}", self._guard.bad_step())
        if "loss" in logs:
            self._stop_if_stuck()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in Trainer; its time does not count for `tokens_per_second`."""
        with self._off_the_clock():
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """As in Trainer; a checkpoint gets its final name once complete, and only then are older ones deleted."""
        run, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        with self._off_the_clock(), storage_faults(run / name):
            super()._save_checkpoint(model, trial)
            self.state.stateful_callbacks[MEAN_LOSS] = {"attributes": {"mean": self.mean_loss()}}
            if self.state.best_global_step == self.state.global_step:  # Trainer has recorded its temporary path
                self.state.best_model_checkpoint = str(run / name)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                self._publish(run, name)
            self.accelerator.wait_for_everyone()
            # A checkpoint still aside is on this node's local disk; on a shared disk it has been published already.
            if self.args.should_save and (aside(run) / name).is_dir():
                self._publish(run, name)
            self._has_saved = True
            self.accelerator.wait_for_everyone()
            if self.args.push_to_hub:
                with upload_only_warns(run / name):
                    super()._push_from_checkpoint(str(run / name))

    def mean_loss(self) -> float:
        """The mean loss of all steps of the run, on all processes; a call on each of them."""
        sums = gather_object([self._loss_sum.item()])
        return math.fsum(sums) / len(sums) / max(self.state.global_step, 1)

    def _publish(self, run: Path, name: str) -> None:
        self.state.save_to_json(str(aside(run) / name / STATE_NAME))
        self._leave_behind()
        publish(run, name)
        rotate(run, name, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _leave_behind(self) -> None:
        """Sets aside what the run had beyond the step it was resumed from, before it first saves steps of its own."""
        if not self._has_saved and self.state.global_step > self._resumed_step:
            supersede(self.args.output_dir, self._resumed_step)
            self._manifest.write(self.args.output_dir)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Does nothing: Trainer would upload a checkpoint before it is published."""

    def _get_output_dir(self, trial: Any = None) -> str:
        """Where Trainer writes checkpoints."""
        return str(aside(self.args.output_dir))

    @contextmanager
    def _off_the_clock(self) -> Iterator[None]:
        """Excludes the time of the block from `tokens_per_second`."""
        if self.args.device.type == "cuda":
            torch.cuda.synchronize()  # pending training kernels still count
        began_s = time.perf_counter()
        yield
        self._counting_since_s += time.perf_counter() - began_s

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in Trainer, unless a gradient was not finite since the last check; `hub_upload.upload` uploads it."""
        self._stop_if_stuck()
        super().save_model(output_dir, _internal_call=True)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            folder = output_dir or self.args.output_dir
            if folder == self.args.output_dir and self.is_world_process_zero():
                self._leave_behind()
            save_adapter(self.adapted_model(), folder, self.initial_weights)
            self._manifest.write(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        state = read_state(Path(resume_from_checkpoint))
        self._resumed_step = state["global_step"]
        self._loss_sum.fill_(mean_loss_before(state) * self._resumed_step)
        load_adapter_weights(self.adapted_model(), resume_from_checkpoint, self.initial_weights)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As in Trainer; the optimiser's state is the checkpoint's, settings and schedule are the current ones."""
        if checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        schedule = copy.copy(self.lr_scheduler.state_dict())
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
            check_optimizer_state(self.optimizer)
        except ValueError as error:
            raise TrainingError(
                f"{checkpoint}/optimizer.pt belongs to another optimiser or adapter: {error}"
            ) from error
        is_schedule = isinstance(self.lr_scheduler, LambdaLR)  # others, and their rates, depend on history
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update({key: value for key, value in own.items() if is_schedule or "lr" not in key})
        if is_schedule:
            # Not the global step: the schedule does not count steps that float16's loss scaling skips.
            set_schedule(self.lr_scheduler, schedule, self.lr_scheduler.last_epoch)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """As in Trainer, which fails if a float16 run is resumed in a dtype without loss scaling."""
        if self.accelerator.scaler is not None:
            super()._load_scaler(checkpoint)

    def restore(self, checkpoint: str | Path) -> None:
        """Restores the state of a checkpoint after the last step, when there is nothing left to train.

        Args:
            checkpoint: The checkpoint.
        """
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / STATE_NAME))
        find_best_again(self.state, self.args.output_dir)
        self._load_from_checkpoint(str(checkpoint))
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_best_model()
        elif self.args.eval_strategy != "no" and not any(
            "eval_loss" in entry and entry["step"] == self.state.global_step for entry in self.state.log_history
        ):
            self.evaluate(ignore_keys=["past_key_values"])  # the final evaluation may follow the last checkpoint

    def _load_best_model(self) -> None:
        load_adapter_weights(self.adapted_model(), self.state.best_model_checkpoint, self.initial_weights)

    def adapted_model(self) -> PackedModel:
        """The model without the wrappers of accelerate and torch.compile."""
        model: PackedModel = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
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
        raise TrainingError(
            f"training stopped: {what}{when}. Probable cause: {cause}.\n{last_good(self.args.output_dir)}"
        )


def last_good(output_dir: str) -> str:
    """A sentence that names the newest checkpoint of a run."""
    saved = checkpoints(output_dir)
    if not saved:
        return "No checkpoint had been saved yet."
    return f"The last good checkpoint is {Path(output_dir) / saved[-1].name}."
