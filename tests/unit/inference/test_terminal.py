"""Without these, a chat in the terminal could end at the first error, or take a reply for markup or a command."""

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from glmtune.errors import ModelError
from glmtune.inference.terminal import run_terminal_chat
from glmtune.prompts import Message


class FakeChat:
    """Says what it is told to say; an exception among the pieces is raised."""

    def __init__(self, *replies: list[str | BaseException]) -> None:
        self.replies = list(replies)
        self.history: list[Message] = []
        self.system: str | None = None
        self.asked: list[str] = []
        self.num_closed = 0
        self.num_cut_tokens = 0
        self.max_prompt_tokens = 500

    def stream(self, text: str) -> Iterator[str]:
        self.asked.append(text)
        try:
            for piece in self.replies.pop(0):
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            self.num_closed += 1

    def reset(self) -> None:
        self.history.clear()


def talk(chat: FakeChat, *lines: str | BaseException) -> str:
    """What the terminal shows; the input ends after the lines."""
    waiting = list(lines)

    def read(prompt: str) -> str:
        if not waiting:
            raise EOFError
        line = waiting.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    console = Console(file=io.StringIO(), force_terminal=False, width=40, soft_wrap=True)
    run_terminal_chat(chat, console, read)
    assert isinstance(console.file, io.StringIO)
    chat.left = waiting
    return console.file.getvalue()


def test_a_question_that_is_too_long_is_told_once():
    class LongChat(FakeChat):
        def stream(self, text: str) -> Iterator[str]:
            self.num_cut_tokens = 7 if len(text) > 5 else 0
            return super().stream(text)

    printed = talk(LongChat(["一"], ["二"]), "很长很长的问题", "短")
    assert printed.count("7 tokens of the conversation were left out, since the model reads only 500 of") == 1
    assert printed.index("left out") < printed.index("二")


def test_replies_are_shown_as_they_are():
    text = "[bold]不是标记[/bold] :smile: " + "很长" * 60
    printed = talk(FakeChat([text[:9], text[9:]]), "  你好 ")
    assert f"GLM> {text}\n" in printed


def test_control_characters_are_left_out():
    printed = talk(FakeChat(["红\x1b[31m色\x07\r\x9b", "第二行\n三"]), "你好")
    assert "红[31m色第二行\n三\n" in printed
    assert "\x1b" not in printed


def test_commands():
    chat = FakeChat()
    chat.history = [Message("user", "a"), Message("assistant", "b")]
    printed = talk(chat, "/system", "/system  你是 一只猫 ", "/reset", "/help", "/sytem x", "", "   ")
    assert "There is no system prompt." in printed
    assert chat.system == "你是 一只猫"
    assert chat.history == []
    assert "/reset" in printed
    assert "Did you mean /system?" in printed
    assert chat.asked == []


@pytest.mark.parametrize("line", ["/exit", "/quit", "/EXIT "])
def test_leaving(line):
    chat = FakeChat()
    talk(chat, line, "你好")
    assert chat.asked == []
    assert chat.left == ["你好"]


def test_slash_within_text_is_no_command():
    chat = FakeChat(["a"], ["b"])
    talk(chat, "/etc/passwd 是什么", " /exit")
    assert chat.asked == ["/etc/passwd 是什么", "/exit"]


def test_interrupt_stops_the_reply_only():
    chat = FakeChat(["一半", KeyboardInterrupt()], ["又来"])
    printed = talk(chat, "你好", "再来")
    assert "一半" in printed
    assert "stopped" in printed
    assert "又来" in printed
    assert chat.num_closed == 2


def test_two_interrupts_at_the_prompt_leave():
    chat = FakeChat(["好"])
    printed = talk(chat, KeyboardInterrupt(), "你好", KeyboardInterrupt(), KeyboardInterrupt(), "没有人听")
    assert printed.count("Press Ctrl-C again") == 2
    assert chat.asked == ["你好"]


def test_errors_do_not_end_the_chat():
    chat = FakeChat([ModelError("out of memory [x]")], ["好"])
    printed = talk(chat, "你好", "再来")
    assert "out of memory [x]" in printed
    assert chat.asked == ["你好", "再来"]


def test_a_question_without_an_answer_is_reported():
    def ends(*replies):
        lines = iter(["你好"] * len(replies))

        def read(prompt):
            try:
                return next(lines)
            except StopIteration:
                raise EOFError from None

        return run_terminal_chat(FakeChat(*replies), Console(file=io.StringIO()), read)

    assert ends(["好"])
    assert not ends(["好"], [ModelError("out of memory")], ["好"])


def test_broken_input_encoding():
    chat = FakeChat(["好"])
    printed = talk(chat, UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), "半\udce4个")
    assert "UTF-8" in printed
    assert chat.asked == ["半?个"]


def test_tool_call_is_named():
    chat = FakeChat(["tool_call()"])
    chat.history = [Message("user", "a"), Message("assistant", "tool_call()", "get_weather")]
    assert "get_weather" in talk(chat, "天气")


def test_terminal_that_cannot_print_everything():
    chat, terminal = FakeChat(["好😀。"]), io.TextIOWrapper(io.BytesIO(), encoding="gbk")
    lines = iter(["你好"])

    def read(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    run_terminal_chat(chat, Console(file=terminal, soft_wrap=True), read)
    terminal.flush()
    assert "GLM> 好?。" in terminal.buffer.getvalue().decode("gbk")
