"""A model folder that other programs read without glmtune: its tokenizer without remote code, too.

transformers 5 runs the Python files of a folder if `auto_map` in `tokenizer_config.json` names them, and refuses the
folder where it must not run them. Older versions, for which those files were written, also find them in `config.json`,
where transformers 5 does not look for a tokenizer. So that is where they are named.
"""

from pathlib import Path

from glmtune.errors import ModelError
from glmtune.files import read_json_object, write_json, write_text
from glmtune.models.chatglm.jinja_template import RESPONSE_TEMPLATE, chat_template
from glmtune.models.chatglm.tokenization import ROLE_TOKENS, ChatGLMTokenizer
from glmtune.models.chatglm.tokenizer_json import build_tokenizer
from glmtune.prompts import Template

_CODE_FILE = "tokenization_chatglm.py"
_PUBLISHED_NAMES: dict[Template, str] = {"chatglm3": "THUDM/chatglm3-6b", "chatglm2": "THUDM/chatglm2-6b"}


def write_plain_files(folder: Path, tokenizer: ChatGLMTokenizer, template: Template, system: str | None) -> None:
    """Adds `tokenizer.json`, `chat_template.jinja` and what other programs look for to a folder in the official layout.

    Args:
        folder: The folder, with `config.json` and `tokenizer_config.json`; both are adapted.
        tokenizer: The tokenizer that belongs to it.
        template: The prompt template that the model is to be asked with.
        system: The system prompt of conversations that have none of their own.
    """
    commands = dict(tokenizer.special_tokens)
    if template != "chatglm3":  # to other templates, role names are text
        commands = {name: token_id for name, token_id in commands.items() if name not in ROLE_TOKENS}
    plain = build_tokenizer(tokenizer.sp_model, commands)
    if plain is None:
        return
    write_text(folder / "tokenizer.json", plain.to_str())
    write_text(folder / "chat_template.jinja", chat_template(template, system))
    config = read_json_object(folder / "tokenizer_config.json", ModelError)
    config.pop("chat_template", None)
    config |= {"clean_up_tokenization_spaces": False, "padding_side": "left"}
    if template == "chatglm3":
        config["response_template"] = RESPONSE_TEMPLATE
    code = folder / _CODE_FILE
    source = code.read_text(encoding="utf-8", errors="replace") if code.is_file() else None
    if source is None or "@eos_token.setter" in source:  # the first official versions fail on tokens that are given
        config |= {"eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    values = read_json_object(folder / "config.json", ModelError)
    auto_map = config.pop("auto_map", None)
    if (
        source is not None
    ):  # or transformers 4 would give the class the tokens of tokenizer.json, and parse them in text
        config.setdefault("added_tokens_decoder", {})
    if source is not None and isinstance(auto_map, dict) and "AutoTokenizer" in auto_map:
        config.pop("tokenizer_class", None)
        values["auto_map"] = {**(values.get("auto_map") or {}), "AutoTokenizer": auto_map["AutoTokenizer"]}
    # llama.cpp's converter reads both. It knows ChatGLM3 by its published name alone.
    name = _PUBLISHED_NAMES[tokenizer.template]
    if name not in str(values.get("_name_or_path")):
        values["_name_or_path"] = name
    values.setdefault("vocab_size", values.get("padded_vocab_size"))
    write_json(folder / "config.json", values)
    write_json(folder / "tokenizer_config.json", config)
