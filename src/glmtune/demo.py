"""`glmtune demo`: the whole workflow on the built-in tiny base, in about a minute on a laptop's CPU."""

import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from glmtune.config import embedded_config, embedded_data, load_config
from glmtune.errors import show_text
from glmtune.export.merge import merge
from glmtune.inference.generate import generate_replies
from glmtune.language import localise
from glmtune.loading.bases import load_base
from glmtune.loading.runs import Loaded, load
from glmtune.prompts import Conversation, Message
from glmtune.training.run import train


def read_held_out() -> dict[str, list[str]]:
    """Reads the held-out questions for the example persona.

    Returns:
        By question, the words of which the trained model's reply holds at least one.
    """
    rows = json.loads(embedded_data().with_name("held_out.json").read_text(encoding="utf-8"))
    return {row["question"]: row["expects"] for row in rows}


def answer(loaded: Loaded, questions: Collection[str]) -> list[str]:
    """Greedy replies to questions, each asked on its own."""
    conversations = [Conversation((Message("user", question),)).with_system(loaded.system) for question in questions]
    options = {"batch_size": len(questions), "max_new_tokens": 48}
    return [
        reply.text
        for reply in generate_replies(loaded.model, loaded.tokenizer, conversations, loaded.template, **options)
    ]


def run_demo(output: Path, console: Console) -> None:
    """Trains on the example persona, shows held-out questions before and after, merges, and says what to try next.

    Args:
        output: Folder for the run and the merged model; a number is appended if it exists, so nothing is overwritten.
        console: Where to print.

    Raises:
        GlmtuneError: One of the steps failed.
    """
    output = _unused(output)
    run, merged = output / "run", output / "merged"
    questions = read_held_out()
    config = load_config(embedded_config(), [f"train.output_dir={run}"])
    base, tokenizer = load_base(None, config.model.dtype)
    system = config.prompt.system
    before = answer(Loaded(base.eval(), tokenizer, tokenizer.template, system, "", None), questions)

    result = train(config)
    after = answer(load(run), questions)

    console.print(_comparison(questions, before, after))
    met = sum(_holds_any(reply, words) for reply, words in zip(after, questions.values(), strict=True))
    console.print(f"correct: {met} / {len(questions)}", highlight=False)
    console.print(f"loss: {result.first_loss:.3f} -> {result.last_loss:.3f}", highlight=False)
    console.print(f"loss curve: {run / 'training_loss.png'}", highlight=False, soft_wrap=True)

    console.print(merge(run, merged).summary(), highlight=False, soft_wrap=True)
    console.print(
        "\nTry next (source .venv/bin/activate):\n"
        f"  glmtune chat {run}\n"
        f"  glmtune chat {merged}\n"
        f"  glmtune data show {embedded_data()}\n"
        "  glmtune train examples/chatglm3-6b.yaml model.path=CHATGLM3-6B data.path=TRAIN.json",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def _unused(folder: Path) -> Path:
    """The folder, or if it exists, the first of folder-2, folder-3, ... that does not."""
    names = itertools.chain([folder], (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2)))
    return next(name for name in names if not name.exists())


def _comparison(questions: Mapping[str, list[str]], before: Sequence[str], after: Sequence[str]) -> Table:
    table = Table(title=localise("Questions that are not in the training data"), row_styles=["", "dim"])
    for heading in (localise("question"), localise("before"), localise("after"), localise("ok")):
        table.add_column(heading, overflow="fold")  # Chinese has no spaces at which to break lines
    for (question, words), old, new in zip(questions.items(), before, after, strict=True):
        table.add_row(question, Text(show_text(old)), Text(show_text(new)), "✓" if _holds_any(new, words) else "·")
    return table


def _holds_any(reply: str, words: Collection[str]) -> bool:
    return any(word in reply for word in words)
