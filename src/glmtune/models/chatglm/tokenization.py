"""The ChatGLM2/3 tokenizer: sentencepiece for text, and special tokens that exist only as ids.

Source: `tokenization_chatglm.py` of the official ChatGLM3-6B release.
"""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import AddedToken, BatchEncoding, PreTrainedTokenizer
from transformers.tokenization_utils_base import SPECIAL_TOKENS_MAP_FILE, TOKENIZER_CONFIG_FILE

from glmtune.errors import ModelError
from glmtune.files import read_json_object, write_json
from glmtune.models.base_folder import TOKENIZER_JSON, check_json_files, require_files
from glmtune.models.chatglm.base_folder import check_vocabulary, has_role_tokens
from glmtune.models.chatglm.chat_template import (
    conversation_from_pairs,
    conversations_from_dicts,
    padded_masks,
    rendered_as_asked,
)
from glmtune.models.chatglm.jinja_template import RESPONSE_TEMPLATE, chat_template
from glmtune.models.chatglm.sentencepiece_file import load_sentencepiece
from glmtune.prompts import Template, render_prompt, render_text

ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
COMMAND_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", *ROLE_TOKENS)
# Properties without a setter in the official class, which fails where a saved configuration sets them.
_NOT_SAVED = ("unk_token", "pad_token", "eos_token", "bos_token", "added_tokens_decoder", "extra_special_tokens")
_ROLE_PATTERN = re.compile(f"({'|'.join(re.escape(token) for token in ROLE_TOKENS)})")


class ChatGLMTokenizer(PreTrainedTokenizer):
    """Produces the same ids as the official tokenizer.

    Text is never searched for special tokens: `a</s>b` or `<|user|>` in a user's message is plain text. Special tokens
    come from `get_command`, from the prefix `[gMASK] sop` that `add_special_tokens` prepends, and from the prompt
    renderer. As in the official tokenizer, role tokens in text are recognised only with `encode_special_tokens=True`;
    here `[gMASK]sop` at the beginning of a text, too, and `</s>` at its end. A rendered conversation then becomes the
    ids that it stands for.

    Args:
        vocab_file: Path of the sentencepiece model, `tokenizer.model`.
        padding_side: Side that `pad` fills.
        clean_up_tokenization_spaces: Must stay false; decoding is exact.
        encode_special_tokens: Whether the special tokens of a rendered prompt become ids.
        has_role_tokens: Whether there are role tokens; ChatGLM2 has none. `from_pretrained` detects it.
        **kwargs: As for transformers' `PreTrainedTokenizer`.

    Raises:
        ModelError: `vocab_file` is missing or not a sentencepiece model.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}
    model_input_names = ["input_ids", "attention_mask"]
    slow_tokenizer_class = None

    def __init__(
        self,
        vocab_file: str,
        padding_side: str = "left",
        clean_up_tokenization_spaces: bool = False,
        encode_special_tokens: bool = False,
        has_role_tokens: bool = True,
        **kwargs: Any,
    ) -> None:
        self.has_role_tokens = has_role_tokens
        self.vocab_file = vocab_file
        self.encode_special_tokens = encode_special_tokens
        self.sp_model = load_sentencepiece(vocab_file)
        self._num_pieces = self.sp_model.vocab_size()
        self.special_tokens = {token: self._num_pieces + offset for offset, token in enumerate(self._commands())}
        self._special_names = {token_id: token for token, token_id in self.special_tokens.items()}
        self._silent_ids = {self.sp_model.bos_id(), self.sp_model.eos_id(), self.sp_model.unk_id()}
        for name in ("unk_token", "pad_token", "eos_token", "bos_token", "extra_special_tokens", "special_tokens"):
            kwargs.pop(name, None)
        super().__init__(
            vocab_file=vocab_file,
            padding_side=padding_side,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            encode_special_tokens=encode_special_tokens,
            has_role_tokens=has_role_tokens,
            unk_token="<unk>",
            pad_token="<unk>",
            eos_token="</s>",
            **kwargs,
        )
        self._published_template: str | None = kwargs.get("chat_template")
        # For programs that look at a tokenizer's template, such as TRL; `apply_chat_template` has the renderer.
        self._own_template = chat_template(self.template)
        self.chat_template: str | None = self._own_template
        self.response_template = RESPONSE_TEMPLATE if has_role_tokens else None

    @property
    def tokenizer(self) -> "ChatGLMTokenizer":
        """The official attribute that holds `sp_model`, which llama.cpp's converter reads: the tokenizer itself."""
        return self

    def _commands(self) -> tuple[str, ...]:
        return COMMAND_TOKENS if self.has_role_tokens else COMMAND_TOKENS[: -len(ROLE_TOKENS)]

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> "ChatGLMTokenizer":
        """As transformers' `from_pretrained`, with a folder's files checked first.

        Raises:
            ModelError: A file is missing or damaged, or the tokenizer is not that of the model in the folder.
        """
        folder = Path(pretrained_model_name_or_path) / kwargs.get("subfolder", "")
        if folder.is_dir():
            require_files(folder, *cls.vocab_files_names.values())
            check_json_files(folder, TOKENIZER_JSON)
        if not has_role_tokens(str(pretrained_model_name_or_path), folder):
            kwargs.setdefault("has_role_tokens", False)
        tokenizer = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        check_vocabulary(folder, tokenizer.vocab_size)
        return tokenizer

    # ---- ids of text and of special tokens -------------------------------------------------------------------------

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text: no prefix, and no special token is ever recognised in it."""
        return self.sp_model.encode(text)

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        size, silent = self._num_pieces, self._silent_ids
        return self.sp_model.decode([each for each in token_ids if 0 <= each < size and each not in silent])

    @property
    def prefix_token_ids(self) -> list[int]:
        """The ids of `[gMASK] sop`, which begin every sequence."""
        return [self.special_tokens["[gMASK]"], self.special_tokens["sop"]]

    def get_prefix_tokens(self) -> list[int]:
        """The official name of `prefix_token_ids`."""
        return self.prefix_token_ids

    def get_command(self, token: str) -> int:
        """The id of a special token.

        Args:
            token: One of `[MASK] [gMASK] [sMASK] sop eop <|system|> <|user|> <|assistant|> <|observation|> </s>`, or of
                `<bos> <eos> <unk> <pad>`, as the official tokenizer calls sentencepiece's own.

        Returns:
            Its id.

        Raises:
            ModelError: There is no such special token.
        """
        own = {"</s>": self.sp_model.eos_id(), "<eos>": self.sp_model.eos_id(), "<bos>": self.sp_model.bos_id()}
        own |= dict.fromkeys(("<unk>", "<pad>"), self.sp_model.unk_id())
        if token in own:
            return int(own[token])
        if token not in self.special_tokens:
            raise ModelError(
                f"{token!r} is not a special token; the special tokens are {', '.join(self.special_tokens)}"
            )
        return self.special_tokens[token]

    @property
    def stop_token_ids(self) -> list[int]:
        """The ids that end a reply: `</s>`, and with role tokens also `<|user|>` and `<|observation|>`."""
        if not self.has_role_tokens:
            return [self.eos_token_id]
        return [self.eos_token_id, self.special_tokens["<|user|>"], self.special_tokens["<|observation|>"]]

    @property
    def template(self) -> Template:
        """The prompt template of the model that this tokenizer belongs to."""
        return "chatglm3" if self.has_role_tokens else "chatglm2"

    # ---- chat ------------------------------------------------------------------------------------------------------

    def build_single_message(self, role: str, metadata: str, message: str) -> list[int]:
        """The ids of one message, as the official method of this name: role token, metadata line, content."""
        return [
            self.get_command(f"<|{role}|>"),
            *self.encode_text(f"{metadata}\n"),
            *self.encode_text(message),
        ]

    def build_prompt(self, query: str, history: Sequence[tuple[str, str]] | None = None) -> str:
        """The official method of ChatGLM2's tokenizer: the prompt's text, without the prefix.

        Args:
            query: The new question.
            history: Earlier questions and answers.

        Raises:
            TypeError: The tokenizer is ChatGLM3's, whose prompts cannot be expressed as text.
        """
        if self.has_role_tokens:
            raise TypeError("build_prompt is ChatGLM2's; ChatGLM3's prompts are made by build_chat_input")
        text = render_text(conversation_from_pairs(query, history or ()), "chatglm2", for_generation=True)
        return text.removeprefix("[gMASK]sop")

    def build_chat_input(
        self, query: str, history: Sequence[dict[str, Any]] | None = None, role: str = "user"
    ) -> BatchEncoding:
        """The official method: the prompt for a new message after a history, as a batch of one.

        Args:
            query: The new message.
            history: Earlier messages: `role`, `content`, and optionally `metadata` and `tools`.
            role: The role of the new message: `user` or `observation`.

        Returns:
            `input_ids` and `attention_mask`, int64 tensors of shape [1, T].
        """
        messages = [*(history or ()), {"role": role, "content": query}]
        (conversation,) = conversations_from_dicts(messages)
        ids = render_prompt(conversation, self, self.template)
        return self.prepare_for_model(ids, add_special_tokens=False, return_tensors="pt", prepend_batch_axis=True)

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[Any],
        tools: Sequence[dict[str, Any] | Callable] | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: dict[str, Any] | None = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Renders conversations with glmtune's one renderer; the arguments are those of transformers.

        Args:
            conversation: One conversation or a batch of them, each a list of `role`/`content` dictionaries (OpenAI
                tool calls and `tool` results too).
            tools: Tools to offer, as JSON schemas or annotated functions; they are added to the system message.
            add_generation_prompt: Whether to end with `<|assistant|>`. Otherwise the result is as in training.
            tokenize: Whether to return ids; otherwise text.
            padding: As in `__call__`.
            truncation: Whether to truncate to `max_length`, as `prompts.render` does.
            max_length: Maximum number of tokens.
            return_tensors: `pt`, `np` or None.
            return_dict: Whether to return a `BatchEncoding`; otherwise the ids alone.
            return_assistant_tokens_mask: Whether to add `assistant_masks`, 1 for the assistant's tokens.
            tokenizer_kwargs: Further arguments for `pad`.
            chat_template: A custom Jinja template: transformers then renders it and tokenises the resulting text, in
                which special tokens are plain text.
            **kwargs: Refused; there is no Jinja template to pass them to.

        Returns:
            A `BatchEncoding`, ids, or text, for one conversation or a batch, as requested.

        Raises:
            DataError: A message is malformed or the turns are out of order.
            TypeError: An argument is unknown.
        """
        if chat_template is not None and chat_template != self.chat_template:
            names = ("tools", "add_generation_prompt", "tokenize", "padding", "truncation", "max_length")
            own = (tools, add_generation_prompt, tokenize, padding, truncation, max_length)
            kwargs |= dict(zip(names, own, strict=True)) | {"tokenizer_kwargs": tokenizer_kwargs}
            kwargs |= {"return_tensors": return_tensors, "return_dict": return_dict, "chat_template": chat_template}
            kwargs |= {"return_assistant_tokens_mask": return_assistant_tokens_mask}
            return super().apply_chat_template(conversation, **kwargs)
        given = {name for name, value in kwargs.items() if value}  # transformers passes many as None or False
        if given:
            raise TypeError(f"apply_chat_template of ChatGLM does not take {', '.join(sorted(given))}")
        is_batched = bool(conversation) and not isinstance(conversation[0], dict)
        conversations = conversations_from_dicts(*(conversation if is_batched else [conversation]), tools=tools)
        if not tokenize:
            texts = [render_text(item, self.template, for_generation=add_generation_prompt) for item in conversations]
            return texts if is_batched else texts[0]
        limit = max_length if truncation else None
        rendered = [rendered_as_asked(each, self, add_generation_prompt, limit) for each in conversations]
        batch = self.pad(
            {"input_ids": [ids for ids, _ in rendered]},
            padding=padding,
            max_length=max_length,
            **(tokenizer_kwargs or {}),
        )
        if return_assistant_tokens_mask:
            side = str((tokenizer_kwargs or {}).get("padding_side", self.padding_side))
            batch["assistant_masks"] = padded_masks([mask for _, mask in rendered], batch["input_ids"], side)
        if not is_batched and return_tensors is None:
            batch = BatchEncoding({name: rows[0] for name, rows in batch.items()})
        else:
            batch = BatchEncoding(dict(batch), tensor_type=return_tensors)
        return batch if return_dict else batch["input_ids"]

    # ---- what transformers requires of a tokenizer -----------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """The number of ids, including special tokens, as in the official tokenizer."""
        return self.sp_model.vocab_size() + len(self.special_tokens)

    def __len__(self) -> int:
        # transformers would count distinct strings, and there may be a plain piece "sop" as well.
        return self.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        pieces = {self.sp_model.id_to_piece(index): index for index in range(self.sp_model.vocab_size())}
        return {**pieces, **self.special_tokens}

    @property
    def all_special_ids(self) -> list[int]:
        """Ids without text: `<unk>`, `</s>`, `<s>` and the command tokens."""
        return sorted({*self._silent_ids, *self._special_names})

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`[gMASK] sop A`, or `[gMASK] sop A B </s>` for a pair."""
        first = [*self.prefix_token_ids, *token_ids_0]
        return first if token_ids_1 is None else [*first, *token_ids_1, self.eos_token_id]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for each id that `build_inputs_with_special_tokens` adds, 0 for the others.

        With `already_has_special_tokens`, `token_ids_0` is the whole sequence, and 1 marks its special tokens.
        """
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True)
        first = [1] * len(self.prefix_token_ids) + [0] * len(token_ids_0)
        return first if token_ids_1 is None else [*first, *[0] * len(token_ids_1), 1]

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> BatchEncoding:
        is_words = kwargs.get("is_split_into_words", False) and bool(text) and isinstance(text[0], str)
        if not isinstance(text, str) and not is_words:  # ids, or a batch, which calls this again for each text
            return super()._encode_plus(text, text_pair, **kwargs)
        # sentencepiece encodes to ids directly: going through pieces, as transformers does, would turn a piece that is
        # spelt like a special token into that token.
        return self.prepare_for_model(
            self._sequence_ids(text),
            None if text_pair is None else self._sequence_ids(text_pair),
            padding=kwargs.pop("padding_strategy").value,
            truncation=kwargs.pop("truncation_strategy").value,
            prepend_batch_axis=True,
            **kwargs,
        )

    def _sequence_ids(self, sequence: str | Sequence[str] | Sequence[int]) -> list[int]:
        """Ids of a text, of words one after the other, or ids as they are."""
        parts = [sequence] if isinstance(sequence, str) else sequence
        return [i for part in parts for i in (self._text_ids(part) if isinstance(part, str) else [part])]

    def _text_ids(self, text: str) -> list[int]:
        if not self.encode_special_tokens:
            return self.encode_text(text)
        prefix, eos = "[gMASK]sop", "</s>"
        is_rendered = text.startswith(prefix)
        is_ended = text.endswith(eos)
        body = text[len(prefix) if is_rendered else 0 : -len(eos) if is_ended else None]
        ids = [token_id for part in self._split_roles(body) for token_id in self._part_ids(part)]
        return [*(self.prefix_token_ids if is_rendered else []), *ids, *([self.eos_token_id] if is_ended else [])]

    def _split_roles(self, text: str) -> list[str]:
        """Splits text into role tokens and the text around them."""
        if not self.has_role_tokens:
            return [text]
        return [part for part in _ROLE_PATTERN.split(text) if part]

    def _part_ids(self, part: str) -> list[int]:
        is_role = self.has_role_tokens and part in ROLE_TOKENS
        return [self.special_tokens[part]] if is_role else self.encode_text(part)

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Pieces of text; special tokens are recognised if `encode_special_tokens` is set."""
        return [self._convert_id_to_token(token_id) for token_id in self._text_ids(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return self.special_tokens.get(token, self.sp_model.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        if index in self._special_names:
            return self._special_names[index]
        if 0 <= index < self.sp_model.vocab_size():
            return self.sp_model.id_to_piece(index)
        return ""

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else [int(token_id) for token_id in token_ids]
        pieces = [
            self._convert_id_to_token(token_id)
            for token_id in ids
            if token_id not in self._silent_ids and not (skip_special_tokens and token_id in self._special_names)
        ]
        return self.sp_model.decode_pieces(pieces)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of pieces."""
        return self.sp_model.decode_pieces(tokens)

    def _add_tokens(self, new_tokens: Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        """Refuses unknown tokens: the vocabulary is fixed, and embeddings are never resized."""
        known = {**self.special_tokens, "<unk>": 0, "</s>": 0, "<s>": 0}
        unknown = [str(token) for token in new_tokens if str(token) not in known]
        if unknown:
            raise ModelError(f"ChatGLM's vocabulary is fixed; tokens cannot be added: {', '.join(unknown)}")
        return 0

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """As in transformers, without keys that the official tokenizer class does not accept or defines itself."""
        own = self.chat_template
        self.chat_template = self._published_template if own == self._own_template else own
        try:
            saved: tuple[str, ...] = super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.chat_template = own
        config = Path(save_directory) / TOKENIZER_CONFIG_FILE
        values = read_json_object(config, ModelError)
        write_json(config, {key: value for key, value in values.items() if key not in _NOT_SAVED})
        (Path(save_directory) / SPECIAL_TOKENS_MAP_FILE).unlink(missing_ok=True)
        return tuple(file for file in saved if Path(file).exists())

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copies `tokenizer.model` into a folder; returns its path there."""
        name = self.vocab_files_names["vocab_file"]
        target = Path(save_directory) / (f"{filename_prefix}-{name}" if filename_prefix else name)
        if target.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "sp_model": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        self.sp_model = load_sentencepiece(self.vocab_file)
