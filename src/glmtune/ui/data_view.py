"""What the page shows of a data file: what `data check` says, and samples with the learnt part coloured."""

import html
import os
import subprocess
import sys
from itertools import groupby

from glmtune.adapters.inheritance import prompt_record
from glmtune.data.formats import read_conversations
from glmtune.language import Language
from glmtune.loading.bases import load_tokenizer
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Rendered, render


def run_command(arguments: list[str], language: Language) -> str:
    """What a command prints, in the reader's language; errors are part of it.

    Args:
        arguments: Of `glmtune`.
        language: The language.
    """
    environment = {**os.environ, "GLMTUNE_LANG": language, "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "glmtune", *arguments],
        capture_output=True, encoding="utf-8", errors="replace", env=environment, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return "\n".join(part for part in (done.stdout.strip(), done.stderr.strip()) if part)


def coloured_samples(file: str, base: str, system: str | None, max_length: int, count: int = 3) -> str:
    """The first samples of a file as HTML, what the model learns in colour.

    Args:
        file: The data file.
        base: The base, whose tokenizer and prompt format are used; "" for the embedded one.
        system: The system prompt of conversations without one of their own.
        max_length: Most tokens of a sample.
        count: How many samples.

    Raises:
        GlmtuneError: The file or the base cannot be used.
    """
    tokenizer = load_tokenizer(base or None)
    template = prompt_record(None, base or None, tokenizer).template
    found = read_conversations([file], None, "\n")
    shown = []
    for conversation in found.items[:count]:
        rendered = render(conversation.with_system(system), tokenizer, template, max_length)
        shown.append(f"<p>{_html(rendered, tokenizer)}</p>")
    return f'<div class="samples">{"".join(shown)}</div>'


def _html(rendered: Rendered, tokenizer: Tokenizer) -> str:
    special = frozenset(tokenizer.all_special_ids)
    tokens = list(zip(rendered.input_ids, rendered.loss_mask, strict=True))
    parts = []
    for (is_learnt, is_special), group in groupby(tokens, lambda token: (token[1], token[0] in special)):
        ids = [token_id for token_id, _ in group]
        text = " ".join(tokenizer.convert_ids_to_tokens(ids)) if is_special else tokenizer.decode_text(ids)
        escaped = html.escape(text).replace("\n", "⏎")
        parts.append(f'<span class="learnt">{escaped}</span>' if is_learnt else escaped)
    return " ".join(parts)
