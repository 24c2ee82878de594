"""Names of settings in other tools: LLaMA-Factory, ms-swift, Axolotl, alpaca-lora, the official demos and the tutorial.

They are looked up before the nearest name is guessed, so a setting that is also a key of PEFT or transformers is not
listed here.
"""

from collections.abc import Mapping
from types import MappingProxyType

# The same setting under another name.
OTHER_NAMES: Mapping[str, str] = MappingProxyType(
    {
        # the base
        "base_model": "model.path",
        "model_id": "model.path",
        "model_id_or_path": "model.path",
        "model_name": "model.path",
        "model_name_or_path": "model.path",
        "model_path": "model.path",
        "torch_dtype": "model.dtype",
        "adapter_name_or_path": "model.adapter_path",
        "adapters": "model.adapter_path",
        "lora_model_dir": "model.adapter_path",
        "load_in_4bit": "model.quantize=nf4",
        "load_in_8bit": "model.quantize=int8",
        # the data
        "data_files": "data.path",
        "data_path": "data.path",
        "dataset": "data.path",
        "dataset_dir": "data.path",
        "datasets": "data.path",
        "train_dataset": "data.path",
        "train_file": "data.path",
        "eval_dataset": "data.eval_path",
        "eval_file": "data.eval_path",
        "test_datasets": "data.eval_path",
        "val_dataset": "data.eval_path",
        "val_file": "data.eval_path",
        "validation_file": "data.eval_path",
        "dataset_test_ratio": "data.eval_fraction",
        "split_dataset_ratio": "data.eval_fraction",
        "test_size": "data.eval_fraction",
        "val_set_size": "data.eval_fraction",
        "val_size": "data.eval_fraction",
        "cutoff_len": "data.max_length",
        "max_seq_len": "data.max_length",
        "sequence_len": "data.max_length",
        "dataset_num_proc": "data.num_workers",
        "num_proc": "data.num_workers",
        "preprocessing_num_workers": "data.num_workers",
        "columns": "data.fields",
        "prompt_column": "data.fields.instruction",
        "query_column": "data.fields.instruction",
        "response_column": "data.fields.output",
        "history_column": "data.fields.history",
        # the prompt
        "chat_template": "prompt.template",
        "prompt_template_name": "prompt.template",
        "template_type": "prompt.template",
        "default_system": "prompt.system",
        "system_prompt": "prompt.system",
        # the adapter
        "lora_r": "lora.r",
        "lora_rank": "lora.r",
        "lora_dropout_p": "lora.lora_dropout",
        "lora_target": "lora.target_modules",
        "lora_target_modules": "lora.target_modules",
        "lora_target_linear": "lora.target_modules=all-linear",
        "additional_target": "lora.modules_to_save",
        "lora_modules_to_save": "lora.modules_to_save",
        "use_lora_dora": "lora.use_dora",
        # the training loop
        "batch_size": "train.per_device_train_batch_size",
        "micro_batch_size": "train.per_device_train_batch_size",
        "gradient_accumulation": "train.gradient_accumulation_steps",
        "grad_accum": "train.gradient_accumulation_steps",
        "epochs": "train.num_train_epochs",
        "max_epochs": "train.num_train_epochs",
        "num_epochs": "train.num_train_epochs",
        "lr": "train.learning_rate",
        "lr_scheduler": "train.lr_scheduler_type",
        "scheduler": "train.lr_scheduler_type",
        "optimizer": "train.optim",
        "grad_clip": "train.max_grad_norm",
        "output": "train.output_dir",
        "save_dir": "train.output_dir",
        "early_stopping": "train.early_stopping_patience",
        "early_stop_interval": "train.early_stopping_patience",
        "early_stopping_steps": "train.early_stopping_patience",
    }
)

# Settings that have no counterpart, or more than one, each with what to do instead.
_NO_REMOTE_CODE = "leave it out, no remote code is ever run"
_SAMPLE_LENGTH = "use data.max_length, which counts question and answer together"
_QUANTISED = "use model.quantize=nf4 for 4 bits, model.quantize=int8 for 8"
_ALWAYS_LORA = "leave it out, an adapter is always trained with LoRA"
_ALWAYS_PACKED = "leave it out, samples are always packed without padding and cannot see each other"
_ANSWERS_ONLY = "leave it out, only the answers are ever learnt"
_ATTENTION = "leave it out, the kind of attention is chosen to suit the device"
_SAVES = "use train.save_strategy=epoch, or train.save_steps"
_EVALUATIONS = "use train.eval_strategy=epoch, or train.eval_steps"
_GENERATION = "it is an option of glmtune chat and glmtune generate, such as max_new_tokens=256"
NO_SUCH_SETTING: Mapping[str, str] = MappingProxyType(
    {
        "adapter": "leave it out, an adapter is always trained with LoRA; one to start from is model.adapter_path",
        "finetuning_type": _ALWAYS_LORA,
        "sft_type": _ALWAYS_LORA,
        "stage": _ALWAYS_LORA,
        "train_type": _ALWAYS_LORA,
        "tuner_type": _ALWAYS_LORA,
        "pre_seq_len": "P-tuning is not supported; an adapter is trained with LoRA",
        "bits": _QUANTISED,
        "quant_bits": _QUANTISED,
        "quant_method": _QUANTISED,
        "quantization_bit": _QUANTISED,
        "quantization_method": _QUANTISED,
        "double_quantization": "leave it out; 4 bits are model.quantize=nf4",
        "max_input_length": _SAMPLE_LENGTH,
        "max_output_length": _SAMPLE_LENGTH,
        "max_source_length": _SAMPLE_LENGTH,
        "max_target_length": _SAMPLE_LENGTH,
        "max_samples": "leave it out and give a shorter file; train.max_steps limits the steps",
        "overwrite_cache": "leave it out, a changed file or setting is always tokenised anew",
        "streaming": "leave it out, all data are read before training begins",
        "neat_packing": _ALWAYS_PACKED,
        "packing": _ALWAYS_PACKED,
        "pad_to_sequence_len": _ALWAYS_PACKED,
        "sample_packing": _ALWAYS_PACKED,
        "train_on_inputs": _ANSWERS_ONLY,
        "train_on_prompt": _ANSWERS_ONLY,
        "attn_impl": _ATTENTION,
        "flash_attention": _ATTENTION,
        "flash_attn": _ATTENTION,
        "use_flash_attn": _ATTENTION,
        "trust_remote_code": _NO_REMOTE_CODE,
        "model_type": "leave it out, config.json in the folder of the base says it",
        "tokenizer_type": "leave it out, the tokenizer lies in the folder of the base",
        "tokenizer_name": "leave it out, the tokenizer lies in the folder of the base",
        "plot_loss": "leave it out, training_loss.png is always written",
        "saves_per_epoch": _SAVES,
        "evals_per_epoch": _EVALUATIONS,
        "wandb_project": "use train.report_to=wandb, and the environment variable WANDB_PROJECT",
        "use_swanlab": "use train.report_to=swanlab",
        "use_wandb": "use train.report_to=wandb",
        "use_unsloth": "leave it out, layers are fused where that is possible",
        "enable_liger_kernel": "leave it out, layers are fused where that is possible",
        "loraplus_lr_ratio": "LoRA+ is not supported; there is one learning rate, train.learning_rate",
        "max_new_tokens": _GENERATION,
        "generation_config": _GENERATION,
        "predict_with_generate": "leave it out; glmtune generate answers a file of questions",
        "do_sample": _GENERATION,
        "temperature": _GENERATION,
        "top_p": _GENERATION,
    }
)

# Sections of other tools' files.
OTHER_SECTIONS: Mapping[str, str] = MappingProxyType(
    {
        "data_config": "data",
        "peft_config": "lora",
        "lora_config": "lora",
        "training_args": "train",
        "training_arguments": "train",
        "training": "train",
    }
)
