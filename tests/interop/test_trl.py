"""TRL: without these, an adapter that it trains would learn other prompts, or not to stop, or not load here."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import glmtune
from glmtune.prompts import Conversation, Message, render

pytestmark = pytest.mark.interop

TURNS = [("你好", "你好！我是助手。"), ("你是谁？", "我是小助手。")]


def _messages(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _rows(kind: str) -> list[dict]:
    if kind == "messages":
        return [{"messages": _messages(*turn)} for turn in TURNS]
    if kind == "prompt":
        return [{"prompt": _messages(*turn)[:1], "completion": _messages(*turn)[1:]} for turn in TURNS]
    return [{"prompt": question, "completion": answer} for question, answer in TURNS]


def _train(base: Path, output: Path, rows: list[dict], **settings):
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        output_dir=str(output),
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        report_to="none",
        use_cpu=True,
        logging_steps=1,
        bf16=False,
        gradient_checkpointing=False,
        **settings,
    )
    tokenizer = AutoTokenizer.from_pretrained(base, encode_special_tokens=True)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules=["query_key_value"], task_type="CAUSAL_LM"),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.train()
    trainer.save_model(str(output))
    return batch, tokenizer


def _samples(batch) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The ids and labels of each row, without padding."""
    found = set()
    masks = batch["attention_mask"] if "attention_mask" in batch else batch["input_ids"] >= 0
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], masks, strict=True):
        found.add((tuple(ids[mask.bool()].tolist()), tuple(labels[mask.bool()].tolist())))
    return found


def _expected(tokenizer) -> set:
    conversations = [
        Conversation((Message("user", question), Message("assistant", answer))) for question, answer in TURNS
    ]
    rendered = [render(conversation, tokenizer) for conversation in conversations]
    return {(tuple(each.input_ids), tuple(each.labels)) for each in rendered}


def _check_adapter(output: Path, base: Path) -> None:
    model, tokenizer = glmtune.load(output, model_path=base, device_map="cpu")
    assert glmtune.Chat(model, tokenizer, max_new_tokens=8).ask("你好")


def test_answers_alone_are_learnt_to_their_end(base: Path, tmp_path: Path) -> None:
    batch, tokenizer = _train(base, tmp_path, _rows("messages"), assistant_only_loss=True)
    assert _samples(batch) == _expected(tokenizer)
    _check_adapter(tmp_path, base)


def test_prompts_and_completions_as_messages(base: Path, tmp_path: Path) -> None:
    batch, tokenizer = _train(base, tmp_path, _rows("prompt"))
    assert _samples(batch) == _expected(tokenizer)
    _check_adapter(tmp_path, base)


def test_all_tokens_of_messages(base: Path, tmp_path: Path) -> None:
    batch, tokenizer = _train(base, tmp_path, _rows("messages"), packing=False)
    assert {ids for ids, _ in _samples(batch)} == {ids for ids, _ in _expected(tokenizer)}
    _check_adapter(tmp_path, base)


def test_plain_text_ends_with_the_end_token(base: Path, tmp_path: Path) -> None:
    batch, tokenizer = _train(base, tmp_path, _rows("text"))
    for (ids, labels), (question, answer) in zip(sorted(_samples(batch)), sorted(TURNS), strict=True):
        assert ids[:2] == tuple(tokenizer.prefix_token_ids), question
        assert labels[-1] == ids[-1] == tokenizer.eos_token_id, answer
    _check_adapter(tmp_path, base)


def test_packed_messages_train(base: Path, tmp_path: Path) -> None:
    settings = {"packing": True, "max_length": 128, "padding_free": False, "packing_strategy": "wrapped"}
    batch, tokenizer = _train(base, tmp_path, _rows("messages") * 40, **settings)
    assert tokenizer.eos_token_id in batch["input_ids"]
    _check_adapter(tmp_path, base)
