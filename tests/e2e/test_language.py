"""The command line speaks one language at a time: the reader's."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import processes

CHINESE = re.compile(r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")
COMMAND = re.compile(r"glmtune( [\w./-]+)+")
ENGLISH = re.compile(r"[A-Za-z]+(?: [a-z]{2,}){2,}")
CALLS = [
    ["--help"],
    ["train", "--help"],
    ["plan", "--help"],
    ["generate", "--help"],
    ["eval", "--help"],
    ["report", "--help"],
    ["data", "show", "--help"],
    ["data", "convert", "--help"],
    ["train", "--keys"],
    ["env"],  # before what imports more than it does
    ["plan", "--gpu-gib", "8"],
]
MISTAKES = [
    ["train", "nosuch.yaml"],
    ["train", "train.learning_rat=1", "train.max_steps=x", "lora.r=0", "data.max_length=abc", "train.no_cuda=true"],
    ["train", "data.path=nosuch.json"],
    ["train", "model.quantize=int8", "lora.use_dora=true"],
    ["plan", "--gpu-gib", "0.61"],
    ["chat"],
    ["chat", "./nosuch"],
    ["chat", "--nonsense"],
    ["nonsense"],
    ["generate", "nosuch", "--batch-size", "many"],
    ["eval", "nosuch", "--data", "broken.json"],
    ["eval", "nosuch"],
    ["report", "nosuch"],
    ["data", "check", "broken.json"],
    ["data", "convert", "broken.json", "--to", "qa"],
    ["data", "convert", "broken.json", "--to", "qa", "--output", "out.csv"],
]


ALL = [*CALLS, *MISTAKES]
DEMO = [["demo"], ["chat", "demo-output/run"]]
# One process is one reader after the other: each one's commands are run in a folder of their own, and after each
# command it says with which status that ended. The second one sees all texts of the demo, but not a whole training.
SCRIPT = """
import io, json, os, sys
from glmtune import demo
from glmtune.cli import main

commands, place = json.loads(sys.argv[1]), sys.argv[2]
text, load_config = sys.stdin.read(), demo.load_config
for language in ("en", "zh"):
    os.environ["GLMTUNE_LANG"] = language
    os.chdir(os.path.join(place, language))
    for arguments in commands:
        sys.argv, sys.stdin = ["glmtune", *arguments], io.StringIO(text)
        try:
            main()
        except SystemExit as ended:
            print(f"\\x1e{ended.code or 0}\\x1e", flush=True)
    demo.load_config = lambda path, settings: load_config(path, [*settings, "train.max_steps=10"])
"""


class Spoken(NamedTuple):
    """What one reader has seen: the exit status of each command and what it printed; then the demo, and a chat."""

    answers: list[tuple[int, str]]
    demo: str
    chat: str
    folder: Path


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Spoken]:
    """By language, what all commands answer."""
    place = tmp_path_factory.mktemp("spoken")
    rows = '[{"instruction": "a", "input": ""}, {"instruction": "", "output": "c"}, 5, {"messages": [{"role": "x"}]}]'
    for language in ("en", "zh"):
        (place / language).mkdir()
        (place / language / "broken.json").write_text(rows, encoding="utf-8")
    commands = [*ALL, *DEMO]
    done = processes.run(
        *(sys.executable, "-c", SCRIPT, json.dumps(commands), place),
        input="/help\n/system\n/nonsense\n你好\n/exit\n",
        capture_output=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout
    *parts, rest = done.stdout.split("\x1e")
    assert (len(parts), rest.strip()) == (2 * 2 * len(commands), "")
    answers = [(int(code), printed) for printed, code in zip(parts[::2], parts[1::2], strict=True)]
    spoken = {}
    for language, seen in (("en", answers[: len(commands)]), ("zh", answers[len(commands) :])):
        (demo_code, demo), (chat_code, chat) = seen[len(ALL) :]
        assert (demo_code, chat_code) == (0, 0), demo + chat
        spoken[language] = Spoken(seen[: len(ALL)], demo, chat, place / language)
    return spoken


@pytest.mark.parametrize("number", range(len(ALL)), ids=[" ".join(arguments) for arguments in ALL])
def test_one_language_at_a_time(number: int, spoken: dict[str, Spoken]) -> None:
    (code, english), (same_code, chinese) = (spoken[language].answers[number] for language in ("en", "zh"))
    assert code == 0 if ALL[number] in CALLS else code in (1, 2)
    assert CHINESE.findall(english) == []
    assert same_code == code
    assert CHINESE.search(chinese)
    assert ENGLISH.findall(COMMAND.sub("", chinese)) == []


def test_demo_and_chat_in_chinese(spoken: dict[str, Spoken]) -> None:
    assert ENGLISH.findall(COMMAND.sub("", spoken["zh"].demo + spoken["zh"].chat)) == []
    assert "助手>" in spoken["zh"].chat


def test_demo_and_chat_in_english(spoken: dict[str, Spoken]) -> None:
    table, rest = re.split(r"\n(?=correct)", spoken["en"].demo)
    ours = [line for line in table.splitlines() if "│" not in line]
    assert CHINESE.findall("\n".join(ours) + rest) == []
    chat = spoken["en"].chat
    assert [line for line in chat.splitlines() if CHINESE.search(line) and "GLM>" not in line] == []


def test_the_demo_learns_what_it_shows(spoken: dict[str, Spoken]) -> None:
    correct = re.search(r"correct: (\d+) / (\d+)", spoken["en"].demo)
    assert correct is not None
    print(correct[0])
    assert int(correct[1]) > int(correct[2]) / 2


@pytest.mark.parametrize("language", ["zh", "en"])
def test_a_log_is_in_english(language: str, spoken: dict[str, Spoken]) -> None:
    log = (spoken[language].folder / "demo-output" / "run" / "trainer_log.jsonl").read_text(encoding="utf-8")
    assert CHINESE.findall(log) == []
