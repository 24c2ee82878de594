"""The prompt templates in Jinja, for programs that render prompts without glmtune.

The text is that of `glmtune.prompts.render_text`: a tokenizer that recognises special tokens in text, such as the one
of `tokenizer_json`, turns it into the ids of the renderer. Two things are left to glmtune: results of tools called at
once are not sorted between their calls, and only strings and numbers among a call's arguments are written as Python
writes them.
"""

import re
from pathlib import Path

from glmtune.prompts import DEFAULT_TOOL_SYSTEM_PROMPT, Template

_FOLDER = Path(__file__).parent / "templates"
# Where transformers' template engine notes which characters are the assistant's; other engines do not know the tags.
_MARK = re.compile(r"\{% (end)?generation %\}")

# How transformers reads a reply: without it, replies begin with the empty line of metadata and a space.
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {"content": {"close": ["</s>", "<|user|>", "<|observation|>"], "content": "text"}},
}


def chat_template(template: Template, system: str | None = None, *, is_for_gguf: bool = False) -> str:
    """A prompt template in Jinja.

    Args:
        template: Its name. The role names of `tutorial` are plain text, also to the model: the tokenizer that reads the
            rendered prompt must not take them for tokens.
        system: The system prompt of conversations that have none of their own.
        is_for_gguf: Whether llama.cpp is to render it: special tokens are spelt as in our GGUF files, and the
            assistant's words are not marked, which only transformers and TRL understand.
    """
    text = (_FOLDER / f"{template}.jinja").read_text(encoding="utf-8")
    prefix, gap, end = ("[gMASK]<sop>", "", "<eos>") if is_for_gguf else ("[gMASK]sop", " ", "</s>")
    names = {"prefix": prefix, "gap": gap, "end": end}
    names |= {"default_system": system or "", "tool_system": DEFAULT_TOOL_SYSTEM_PROMPT}
    constants = "".join(f"{{%- set {name} = {_literal(value)} -%}}\n" for name, value in names.items())
    return constants + (_MARK.sub("", text) if is_for_gguf else text)


def _literal(text: str) -> str:
    """A string literal of Jinja."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"
