"""Keys of other tools and of older versions, with their replacements."""

from collections.abc import Mapping
from types import MappingProxyType

# Names in other tools.
REPLACED_LORA_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "alpha": "use lora.lora_alpha",
        "dropout": "use lora.lora_dropout",
        "rank": "use lora.r",
        "target": "use lora.target_modules",
    }
)

# Keys in older tutorials that transformers 5 no longer knows, with their replacements.
REPLACED_TRAIN_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "activation_checkpointing": "glmtune calls it train.gradient_checkpointing, whatever transformers is installed",
        "activation_checkpointing_kwargs": "glmtune calls it train.gradient_checkpointing_kwargs",
        "adafactor": "use train.optim=adafactor",
        "bf16_backend": "leave it out",
        "dispatch_batches": "use train.accelerator_config.dispatch_batches",
        "eval_batch_size": "use train.per_device_eval_batch_size",
        "evaluate_during_training": "use train.eval_strategy=steps",
        "evaluation_strategy": "use train.eval_strategy",
        "fp16_backend": "leave it out",
        "fp16_opt_level": "leave it out",
        "fsdp_min_num_params": "leave it out, each GPU holds the whole model",
        "fsdp_transformer_layer_cls_to_wrap": "leave it out, each GPU holds the whole model",
        "group_by_length": "use train.train_sampling_strategy=group_by_length",
        "half_precision_backend": "leave it out",
        "include_inputs_for_metrics": "use train.include_for_metrics=[inputs]",
        "include_tokens_per_second": "leave it out, tokens/s is always logged",
        "jit_mode_eval": "leave it out",
        "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
        "max_seq_length": "use data.max_length",
        "mp_parameters": "leave it out",
        "no_cuda": "use train.use_cpu",
        "overwrite_output_dir": "a run is never overwritten; delete the folder or choose another train.output_dir",
        "past_index": "leave it out",
        "per_gpu_eval_batch_size": "use train.per_device_eval_batch_size",
        "per_gpu_train_batch_size": "use train.per_device_train_batch_size",
        "push_to_hub_model_id": "use train.hub_model_id",
        "push_to_hub_organization": "use train.hub_model_id",
        "push_to_hub_token": "use train.hub_token",
        "ray_scope": "leave it out",
        "save_safetensors": "leave it out, adapters are always saved as safetensors",
        "sharded_ddp": "leave it out, each GPU holds the whole model",
        "split_batches": "use train.accelerator_config.split_batches",
        "torchdynamo": "use train.torch_compile_backend",
        "tpu_metrics_debug": "use train.debug",
        "tpu_num_cores": "leave it out",
        "train_batch_size": "use train.per_device_train_batch_size",
        "use_ipex": "leave it out",
        "use_legacy_prediction_loop": "leave it out",
        "use_mps_device": "leave it out, MPS is used where it is available",
        "warmup_ratio": "use train.warmup_steps, which can also be a fraction of all steps: train.warmup_steps=0.03",
        "xpu_backend": "use train.ddp_backend",
    }
)
