"""What a single conversation can show: a row of the table for each kind of finding."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from glmtune.data.duplicates.normal_form import normal_form
from glmtune.data.duplicates.scripts import script_of
from glmtune.prompts import Conversation
from glmtune.prompts.foreign_tokens import ROLE_TOKEN

_LEAST_REPEATED = 8  # letters of a question: a greeting may well be returned

_TAG = re.compile(
    r"</?(?:div|p|br|span|font|img|table|tbody|tr|td|th|ul|ol|li|h[1-6]|strong|em|b|i|u|a|hr|center|iframe|script|style)"
    r"(?:\s+[a-z-]+\s*=[^<>]*|\s*)/?>|&(?:nbsp|amp|lt|gt|quot|apos|ldquo|rdquo|mdash|hellip|#\d{2,5}|#x[0-9a-f]{2,4});",
    re.IGNORECASE,
)
_ABOUT_CODE = re.compile(
    r"html|xml|css|\bjs\b|javascript|vue|react|jsx|svg|markdown|php|jsp|latex|网页|前端|标签|代码|爬虫|正则|转义|实体|编程|函数|"
    r"\bweb|\btag|\bcode|regex|escape|website|browser|浏览器|模板|排版|富文本",
    re.IGNORECASE,
)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_ROLE_NAME = re.compile(r"\s*(?:Human|Assistant|User|ChatGLM|GPT|用户|助手|答|问)\s*[:：]", re.IGNORECASE)
_DAMAGE = re.compile(r"\ufffd|锟斤拷|烫烫烫|屯屯屯|[\x80-\x9f]|[锛銆]")
_AS_LATIN = re.compile(r"[\xc2-\xf4][\x80-\xbf\u0152-\u2122]{1,3}")
# What the first bytes of 的, 是, 在, 一, 不, 了 and other frequent characters look like in GBK.
_AS_GBK = re.compile("[鐨鏄鍦涓浜鏈鎴杩鍙璇鐢绗浠娌鍥琛鏉宸鍚鏃鍒灏澶濂绛闂棰浣]")
_RUN = re.compile(r"[^\x00-\x7f]{4,}")
_KANA = re.compile(r"[\u3041-\u30ff]")
_ABOUT_SCRIPTS = re.compile("繁[体體]|简[体體]|簡[体體]|正體|粤语|粵語|古文|文言|异体|異體|香港|台湾|臺灣|台灣")
_JSON = re.compile(r"\s*(?:```(?:json)?\s*)?([{\[]\s*(?:[\"{\[]).*?)(?:\s*```)?\s*", re.DOTALL)
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


@dataclass(frozen=True)
class Dialogue:
    """A conversation as the checks see it."""

    conversation: Conversation

    @cached_property
    def answers(self) -> list[str]:
        """The assistant's turns that are learnt, calls of tools left out."""
        return [each.content for each in self.conversation.messages if each.has_loss and not each.metadata]

    @cached_property
    def texts(self) -> list[str]:
        """All turns of the user and the assistant."""
        return [each.content for each in self.conversation.messages if each.role in ("user", "assistant")]

    @cached_property
    def whole(self) -> str:
        """Everything that is said."""
        return "\n".join([each.content for each in self.conversation.messages])


@dataclass(frozen=True)
class _TextCheck:
    """A kind of finding that a single conversation can show.

    Attributes:
        name: Its name for programs.
        is_found: Whether a conversation shows it.
        message: What was found; the number of rows stands behind it.
        mend: What to do about it.
    """

    name: str
    is_found: Callable[[Dialogue], bool]
    message: str
    mend: str


def _repeats_question(dialogue: Dialogue) -> bool:
    messages = dialogue.conversation.messages
    for question, answer in pairwise(messages):
        if question.role == "user" and answer.has_loss and answer.content[:2] == question.content[:2]:
            asked, said = normal_form(question.content), normal_form(answer.content)
            if len(asked) >= _LEAST_REPEATED and said.startswith(asked):
                return True
    return False


def _has_markup(dialogue: Dialogue) -> bool:
    whole = dialogue.whole
    if not ("<" in whole or "&" in whole) or not _TAG.search(whole) or _ABOUT_CODE.search(whole):
        return False
    return any(_TAG.search(_CODE.sub("", text)) for text in dialogue.texts)


def _has_role_marker(dialogue: Dialogue) -> bool:
    whole = dialogue.whole
    if ("<" in whole or "[" in whole or "###" in whole) and ROLE_TOKEN.search(_CODE.sub("", whole)):
        return True
    return any(_ROLE_NAME.match(answer) for answer in dialogue.answers)


def _is_mojibake(dialogue: Dialogue) -> bool:
    whole = dialogue.whole
    if whole.isascii():
        return False
    return bool(_DAMAGE.search(whole)) or _reads_as_utf8(whole)


def _reads_as_utf8(text: str) -> bool:
    """Whether a part of the text is UTF-8 that was read as Latin-1 or as GBK, which real text almost never is."""
    for found in _AS_LATIN.finditer(text):
        for encoding in ("cp1252", "latin-1"):
            try:
                found[0].encode(encoding).decode("utf-8")
            except UnicodeError:
                continue
            return True
    return bool(_AS_GBK.search(text)) and any(_is_utf8_as_gbk(found[0]) for found in _RUN.finditer(text))


def _is_utf8_as_gbk(text: str) -> bool:
    """Whether most bytes of the text in GBK are characters of Chinese in UTF-8; a few got lost on the way."""
    written = text.encode("gbk", "ignore")
    chinese = [char for char in written.decode("utf-8", "ignore") if char >= "\u2e80"]
    return len(chinese) > 1 and 3 * len(chinese) >= 0.8 * len(written)


def _mixes_scripts(dialogue: Dialogue) -> bool:
    mixed = [text for text in dialogue.texts if script_of(text) == "mixed"]
    return bool(mixed) and not _ABOUT_SCRIPTS.search(dialogue.whole) and not any(map(_KANA.search, mixed))


def _breaks_json(dialogue: Dialogue) -> bool:
    return any(answer.lstrip()[:1] in ("{", "[", "`") and _is_broken_json(answer) for answer in dialogue.answers)


def _is_broken_json(answer: str) -> bool:
    found = _JSON.fullmatch(answer)
    if not found:
        return False
    try:
        json.loads(found[1])
    except RecursionError:
        return False
    except ValueError:
        bare = _JSON_STRING.sub("", found[1])
        return bare.count("{") != bare.count("}") or bare.count("[") != bare.count("]")
    return False


CHECKS = (
    _TextCheck(
        "repeats_question",
        _repeats_question,
        "answers that start by repeating the whole question",
        "Cut the question off the answer, or the model learns to repeat what it is asked",
    ),
    _TextCheck(
        "markup",
        _has_markup,
        "leftover HTML",
        "Remove the tags and write characters such as &nbsp; as what they stand for",
    ),
    _TextCheck(
        "role_markers",
        _has_role_marker,
        "role markers of a prompt in the texts",
        "Remove them: roles belong into the fields of a row, and the template writes the markers",
    ),
    _TextCheck(
        "mojibake",
        _is_mojibake,
        "text that was read in a wrong encoding",
        "Take them from their source again, read as what it is (UTF-8 or GBK), or remove them",
    ),
    _TextCheck(
        "mixed_scripts",
        _mixes_scripts,
        "simplified and traditional characters in one text",
        "Convert them to one script, such as with OpenCC",
    ),
    _TextCheck(
        "broken_json",
        _breaks_json,
        "answers in JSON whose brackets do not match",
        "Complete them: most were cut off when they were made",
    ),
)
