"""The only renderer: turns a conversation into token ids and a loss mask.

Training, chat, batch generation and `apply_chat_template` all use it, so prompts at inference are the same as in
training. The package is pure: it uses no files, no tensors and no model.

    chatglm3   [gMASK] sop <|system|> "\n" content <|user|> "\n" content <|assistant|> "\n" content </s>
                                                                                       '-- supervised --'

The generation prompt ends with `<|assistant|>`; everything that the model must produce after it is supervised,
including the token that ends its turn: `</s>` at the very end, the next role token elsewhere. Role tokens and `</s>`
exist only as ids; the same letters in a user's text stay text.

    chatglm2   [gMASK] sop "[Round 1]\\n\\n问：" question "\\n\\n答：" answer </s>
                                                                      '-supervised-'

ChatGLM2 has no roles: its prompt is one text, in which earlier answers have no end token, so that only the last answer
is supervised. It has no place for a system prompt either; the system prompt is put before the first round.

Source: the official ChatGLM3 prompt specification (PROMPT.md of the ChatGLM3 repository); `build_prompt` of ChatGLM2's
tokenizer and its P-tuning code; the widely used ChatGLM3 LoRA tutorial for the `tutorial` template.
"""

from glmtune.prompts.conversation import (
    IGNORED_LABEL,
    TEMPLATES,
    Conversation,
    Encode,
    Message,
    PromptTokenizer,
    Rendered,
    Role,
    Template,
    check_supervision,
    check_turns,
)
from glmtune.prompts.renderer import render, render_prompt
from glmtune.prompts.replies import format_tool_call, parse_reply, parse_tool_call, turn_token_id
from glmtune.prompts.templates import DEFAULT_TOOL_SYSTEM_PROMPT, render_text

__all__ = [
    "DEFAULT_TOOL_SYSTEM_PROMPT",
    "IGNORED_LABEL",
    "TEMPLATES",
    "Conversation",
    "Encode",
    "Message",
    "PromptTokenizer",
    "Rendered",
    "Role",
    "Template",
    "check_supervision",
    "check_turns",
    "format_tool_call",
    "parse_reply",
    "parse_tool_call",
    "render",
    "render_prompt",
    "render_text",
    "turn_token_id",
]
