"""Without these, the well-known tutorial's own cells would no longer run after `import glmtune`."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

import glmtune  # noqa: F401  (registers the Auto classes)
from glmtune.models.chatglm import ChatGLMForConditionalGeneration

ROWS = [
    {"instruction": "你好", "input": "", "output": "你好，我是一个人工智能助手。"},
    {"instruction": "今天天气怎么样？", "input": "", "output": "Hello, the quick brown fox."},
    {
        "instruction": "小姐，别的秀女都在求中选，",
        "input": "唯有咱们小姐想被撂牌子",
        "output": "嘘——都说许愿说破是不灵的。",
    },
    {"instruction": "What is the weather?", "input": "", "output": "许愿"},
]


def process_func(example: dict, tokenizer) -> dict:
    """The tutorial's preprocessing."""
    question = example["instruction"] + example["input"]
    instruction = tokenizer.encode(
        f"<|system|>\n现在你要扮演皇帝身边的女人--甄嬛\n<|user|>\n{question}<|assistant|>\n",
        add_special_tokens=True,
        truncation=True,
        max_length=512,
    )
    response = tokenizer.encode(example["output"], add_special_tokens=False, truncation=True, max_length=512)
    return {
        "input_ids": instruction + response + [tokenizer.eos_token_id],
        "labels": [-100] * len(instruction) + response + [tokenizer.eos_token_id],
    }


@pytest.fixture(scope="module")
def adapter(official_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Trains two steps as the tutorial does; returns the adapter's folder and a greedy reply of the trained model."""
    output_dir = tmp_path_factory.mktemp("ChatGLM")
    tokenizer = AutoTokenizer.from_pretrained(official_folder)
    dataset = Dataset.from_list(ROWS).map(lambda row: process_func(row, tokenizer), remove_columns=list(ROWS[0]))
    model = AutoModelForCausalLM.from_pretrained(official_folder, dtype=torch.bfloat16, device_map="auto")
    model.enable_input_require_grads()
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM, target_modules={"query_key_value"}, r=8, lora_alpha=32, inference_mode=False
    )
    model = get_peft_model(model, config)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output_dir),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=1,
            logging_steps=1,
            max_steps=2,
            eval_strategy="steps",
            eval_steps=1,
            gradient_checkpointing=True,
            learning_rate=1e-2,
            save_on_each_node=True,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=dataset,
        eval_dataset=dataset.select(range(3)),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=None, label_pad_token_id=-100, padding=True),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)
    first, last = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert last < first
    assert trainer.predict(dataset.select(range(3))).predictions.shape[0::2] == (3, model.config.padded_vocab_size)
    trainer.save_model()
    return output_dir, _reply(model.eval(), tokenizer)


def _reply(model, tokenizer) -> str:
    ids = tokenizer.encode("<|user|>\n你好<|assistant|>\n", return_tensors="pt")
    return tokenizer.decode(model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)[0])


def test_the_saved_adapter_gives_the_trained_model_back(official_folder, adapter) -> None:
    folder, expected = adapter
    saved = json.loads((folder / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(official_folder)
    tokenizer = AutoTokenizer.from_pretrained(official_folder)
    model = AutoModelForCausalLM.from_pretrained(official_folder, dtype=torch.bfloat16)
    before = _reply(model, tokenizer)
    model = PeftModel.from_pretrained(model, model_id=str(folder)).eval()
    assert _reply(model, tokenizer) == expected
    assert before != expected
    assert _reply(model.merge_and_unload(), tokenizer) != before


def test_the_adapter_folder_itself_finds_its_base(official_folder, adapter) -> None:
    folder, _ = adapter
    model = AutoModelForCausalLM.from_pretrained(folder / "checkpoint-2", dtype=torch.bfloat16)
    assert type(model) is ChatGLMForConditionalGeneration
    assert any("lora_A" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, "auto"])
def test_device_map_auto(official_folder, dtype) -> None:
    model = AutoModelForCausalLM.from_pretrained(official_folder, dtype=dtype, device_map="auto")
    assert model.device == torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(official_folder)
    inputs = tokenizer(["你好", "今天天气怎么样？"], padding=True, return_tensors="pt").to(model.device)
    assert model.generate(**inputs, max_new_tokens=3).shape[0] == 2


DEVICE_MAP = {
    "transformer.embedding": "cpu",
    "transformer.encoder.layers.0": "cpu",
    "transformer.encoder.layers.1": "disk",
    "transformer.encoder.final_layernorm": "disk",
    "transformer.output_layer": "disk",
}


@pytest.mark.parametrize(
    "options",
    [{"device_map": DEVICE_MAP}, {"device_map": "auto", "max_memory": {"cpu": "150KB"}}],
    ids=["device map", "max memory"],
)
def test_offloaded_to_disk(official_folder, tmp_path, options) -> None:
    whole = AutoModelForCausalLM.from_pretrained(official_folder)
    model = AutoModelForCausalLM.from_pretrained(official_folder, offload_folder=tmp_path, **options)
    assert "disk" in model.hf_device_map.values()
    assert model.transformer.output_layer.weight.device.type == "meta"
    ids = torch.randint(3, 600, (2, 9), generator=torch.Generator().manual_seed(4))
    options = {"max_new_tokens": 4, "do_sample": False}
    assert model.generate(ids, **options).tolist() == whole.generate(ids, **options).tolist()
