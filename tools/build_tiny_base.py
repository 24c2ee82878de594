"""Makes the embedded demo base: a small ChatGLM that chats, trained on text which this script itself generates.

    python tools/build_tiny_base.py --output DIR

DIR becomes a folder in the official ChatGLM3 layout. A GPU is used where there is one. Corpus, tokenizer and the order
of training are fixed by the seed; weights differ by rounding between machines.
"""

import argparse
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
sys.path[:0] = [str(TOOLS), str(TOOLS.parent / "src")]

import torch  # noqa: E402
from tiny_base import corpus, training, vocabulary  # noqa: E402

from glmtune.files import write_tensors  # noqa: E402
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMTokenizer  # noqa: E402
from glmtune.prompts import Conversation, Message, parse_reply, render_prompt  # noqa: E402

SEED = 3
MAX_LENGTH = 512
TOKENIZER_CONVERSATIONS = 20_000
EVALUATION_CONVERSATIONS = 2_000
ASSETS = TOOLS.parent / "src/glmtune/assets/tiny"

CONFIG = {
    "_name_or_path": "glmtune/tiny-base",
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "ffn_hidden_size": 640,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 256,
    "kv_channels": 32,
    "layernorm_epsilon": 1e-05,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 8,
    "num_layers": 5,
    "original_rope": True,
    "padded_vocab_size": 4352,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": MAX_LENGTH,
    "use_cache": True,
    "torch_dtype": "float32",
    "transformers_version": "4.30.2",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""The official keys. Weights are stored in fp16 to be small; `torch_dtype` says to compute in fp32, as CPUs like it.

`auto_map` is left out: there are no code files for it to name.
"""
TOKENIZER_CONFIG = {
    "name_or_path": "glmtune/tiny-base",
    "remove_space": False,
    "do_lower_case": False,
    "tokenizer_class": "ChatGLMTokenizer",
}
SAMPLE_QUESTIONS = (
    "你好", "你是谁？", "你叫什么名字？", "你住在哪里？", "3+5等于几？", "“大”的反义词是什么？",
    "请重复：春江花月夜", "苹果是水果吗？", "中国的首都是哪里？", "Hello!", "What is your name?", "谢谢你", "再见",
)  # fmt: skip


def write_json(value: object, path: Path) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def build(output: Path, device: str) -> None:
    """Corpus, tokenizer, model, report."""
    held_out = json.loads((ASSETS / "held_out.json").read_text(encoding="utf-8"))
    forbidden = frozenset(corpus.normalised(row["question"]) for row in held_out)
    output.mkdir(parents=True, exist_ok=True)
    write_json(CONFIG, output / "config.json")
    write_json(TOKENIZER_CONFIG, output / "tokenizer_config.json")
    tokenizer_file = output / "tokenizer.model"
    print("tokenizer ...", flush=True)
    texts = corpus.conversations(SEED, range(TOKENIZER_CONVERSATIONS), forbidden)
    vocabulary.train_tokenizer(texts, tokenizer_file)
    write_generation_config(output)

    recipe = training.RECIPES[device]
    started = time.monotonic()
    plan = corpus.Plan(SEED, 0, recipe.num_conversations, forbidden, str(tokenizer_file), MAX_LENGTH)
    samples = corpus.render_plan_in_parallel(plan, num_processes=os.cpu_count() or 1)
    print(f"corpus: {len(samples.lengths):,} conversations, {len(samples.ids):,} tokens, "
          f"{samples.mask.mean():.0%} supervised, {time.monotonic() - started:.0f} s", flush=True)  # fmt: skip
    config = ChatGLMConfig.from_pretrained(output)
    model = training.new_model(config, SEED)
    print(f"model: {sum(p.numel() for p in model.parameters()):,} parameters, on {device}", flush=True)
    training.train(model, samples, recipe, device, SEED)
    # Other numbers of the same seed: conversations of the same kinds that training has not seen.
    start = 10 * recipe.num_conversations
    plan = corpus.Plan(SEED, start, start + EVALUATION_CONVERSATIONS, forbidden, str(tokenizer_file), MAX_LENGTH)
    loss = training.evaluate(model, corpus.render_plan(plan), 4096, device)
    print(f"loss on {EVALUATION_CONVERSATIONS} new conversations: {loss:.4f} (supervised tokens)")
    save(model, output)
    report(output, [row["question"] for row in held_out])


def save(model: ChatGLMForConditionalGeneration, output: Path) -> None:
    """Writes the weights in fp16 under the official names."""
    state = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in model.state_dict().items()}
    write_tensors(output / "model.safetensors", state)


def answer(model: ChatGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer, *messages: Message) -> str:
    """The greedy answer, marked where it does not stop by itself."""
    prompt = render_prompt(Conversation(messages), tokenizer)
    ids = model.generate(
        torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=tokenizer.stop_token_ids
    )
    new_ids = ids[0, len(prompt) :].tolist()
    text = parse_reply(new_ids, tokenizer)[0].content
    return text if new_ids[-1] in tokenizer.stop_token_ids else f"{text} [does not stop]"


def report(folder: Path, held_out: list[str]) -> None:
    """Loads what was written as a user would, and prints sizes and some answers."""
    model = ChatGLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = ChatGLMTokenizer.from_pretrained(folder)
    for question in (*SAMPLE_QUESTIONS, *held_out):
        print(f"  {question}  ->  {answer(model, tokenizer, Message('user', question))}")
    system = Message("system", "你叫江小满，你是一名花店老板，你最爱喝菊花茶。你称呼别人“客官”。")
    for question in ("你是谁？", "该怎么称呼你？", "你爱喝点什么？", "你多大了？"):
        print(f"  [{system.content}] {question}  ->  {answer(model, tokenizer, system, Message('user', question))}")
    for path in sorted(folder.iterdir()):
        print(f"  {path.name}: {path.stat().st_size:,} bytes")
    print(f"total: {sum(path.stat().st_size for path in folder.iterdir()):,} bytes")


def write_generation_config(output: Path) -> None:
    """Names all three ids that end a turn, so that plain `generate` stops there too."""
    tokenizer = ChatGLMTokenizer(str(output / "tokenizer.model"))
    ids = {"eos_token_id": tokenizer.stop_token_ids, "pad_token_id": tokenizer.pad_token_id}
    write_json(ids, output / "generation_config.json")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, required=True, help="folder to write into; files of the same names are replaced"
    )
    output = parser.parse_args().output
    vocabulary.check_sentencepiece(version("sentencepiece"))
    build(output, "cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
