"""What README and docs tell people to click on, type or write into a file is there."""

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import typer
import yaml

import glmtune
from glmtune.cli.app import app
from glmtune.config import OWN_TRAIN_KEYS, describe_keys, load_config

ROOT = Path(__file__).parents[2]
GENERATED = {"docs/reference/configuration.md", "docs/reference/configuration.en.md"}
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("README*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")]
)
EXAMPLES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("examples/*.*") if path.suffix in (".yaml", ".sh"))
SECTIONS = ("model", "data", "prompt", "lora", "train")
SETTING = re.compile(rf"((?:{'|'.join(SECTIONS)})\.\w+)[\w.]*(=.*)?")
NOT_SETTINGS = {"train.json", "model.chat", "model.stream_chat", "model.device"}  # a file, and what a model has
# Where a path may begin, besides the folder of its page; `planning/plan` is planning/plan.py.
PLACES = (ROOT, Path(glmtune.__file__).parent, ROOT / "examples")
PATH = re.compile(r"[\w.-]+(?:/[\w.-]*)+|[\w-]+\.(?:py|sh|ipynb|yaml)")
NO_SOURCE = re.compile(
    r"(\./)?output/ChatGLM|demo-output/|RUN/.*|checkpoint-N/|\.venv/.*"  # people's own folders
    r"|owner/name|(THUDM|ZhipuAI)/chatglm3-6b"  # names on a hub
)
COMMAND = re.compile(r"(?:\$ )?(?:(?:\S*/)?glmtune|torchrun .* -m glmtune\.cli)\s+(?P<arguments>.+)")


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Language and text of each code block."""
    for match in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```", read(page), flags=re.MULTILINE | re.DOTALL):
        yield match[2], "\n".join(line.removeprefix(match[1]) for line in match[3].splitlines())


def prose(page: str) -> str:
    return re.sub(r"^( *)```.*?^\1```", "", read(page), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site name them."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def commands(page: str) -> list[list[str]]:
    """The arguments of each `glmtune` in the code blocks of a page, or in the comments of an example."""
    if page.startswith("examples/"):
        lines = [line.lstrip("# ") for line in read(page).splitlines() if line.startswith("#   ")]
    else:
        lines = [
            line for language, text in blocks(page) if language in ("bash", "console") for line in text.split("\n")
        ]
    found = [COMMAND.fullmatch(part.strip()) for line in lines for part in line.split(" #")[0].split("&&")]
    return [shlex.split(match["arguments"]) for match in found if match]


def known_keys() -> set[str]:
    from peft import LoraConfig
    from transformers import TrainingArguments

    keys = describe_keys().keys() | {f"train.{key}" for key in OWN_TRAIN_KEYS}
    keys |= {f"lora.{key}" for key in LoraConfig.__dataclass_fields__}
    return keys | {f"train.{key}" for key in TrainingArguments.__dataclass_fields__} | {"train.gradient_checkpointing"}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES])
def test_every_command_can_be_typed(page: str) -> None:
    for arguments in commands(page):
        command = typer.main.get_command(app)
        words = list(arguments)
        while getattr(command, "commands", None) and not words[0].startswith("-"):
            name = words.pop(0)
            assert name in command.commands, f"glmtune {shlex.join(arguments)}"
            command = command.commands[name]
        options = {option for parameter in command.params for option in parameter.opts}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= options, f"glmtune {shlex.join(arguments)}"
        if command.name in ("train", "plan"):
            config = next((word for word in words if word.endswith(".yaml")), None)
            settings = [word for word in words if "=" in word and not word.startswith("--")]
            load_config(None if config is None else ROOT / config, settings)


def test_the_check_sees_commands_and_blocks() -> None:
    assert ["demo"] in commands("README.md")
    assert commands("examples/chatglm3-6b.yaml")
    assert {language for language, _ in blocks("docs/quickstart.md")} >= {"bash", "python"}


@pytest.mark.parametrize("page", PAGES)
def test_every_yaml_block_is_a_configuration(page: str, tmp_path: Path) -> None:
    for number, text in enumerate(text for language, text in blocks(page) if language == "yaml"):
        assert yaml.safe_load(text).keys() <= set(SECTIONS)
        file = tmp_path / f"{number}.yaml"
        file.write_text(text, encoding="utf-8")
        load_config(file)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in GENERATED])
def test_every_key_that_is_named_exists(page: str) -> None:
    words = [word for code in re.findall(r"`([^`\n]+)`", prose(page)) for word in code.split()]
    named = {match[1] for word in words if (match := SETTING.fullmatch(word))}
    assert named - NOT_SETTINGS <= known_keys()


def missing_paths(page: str, text: str) -> list[str]:
    """The paths between backticks that lead to no file or folder of the repository."""
    words = {word for code in re.findall(r"`([^`\n]+)`", text) for word in code.split()}
    paths = {word for word in words if PATH.fullmatch(word) and not NO_SOURCE.fullmatch(word)}
    places = (*PLACES, (ROOT / page).parent)
    there = {path for path in paths for place in places if (place / path).exists() or (place / f"{path}.py").is_file()}
    return sorted(paths - there)


@pytest.mark.parametrize("page", [*PAGES, "benchmarks/README.md"])
def test_every_source_file_that_is_named_is_there(page: str) -> None:
    assert missing_paths(page, prose(page)) == []


def test_the_check_sees_files_that_are_gone() -> None:
    text = "`planning/plan.py`, `planning/plan`, `tests/gpu`, `python tools/untranslated.py`, `output/ChatGLM`, `x`"
    assert missing_paths("docs/design.md", text) == []
    gone = ["gone.py", "gone/plan", "planning/gone.py", "tests/gone"]
    assert missing_paths("docs/design.md", " ".join(f"`{path}`" for path in gone)) == gone


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_can_be_read_by_python(page: str) -> None:
    assert [text for language, text in blocks(page) if language == "python" and not is_python(text)] == []


def is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def test_the_check_sees_python_that_is_none() -> None:
    assert is_python("import glmtune\nglmtune.train()")
    assert not is_python("glmtune train config.yaml")


@pytest.mark.parametrize("page", [page for page in PAGES if f"{page.removesuffix('.md')}.en.md" in PAGES])
def test_both_languages_show_the_same_code(page: str) -> None:
    def code(name: str) -> list[str]:  # what a command prints is in the page's own language
        return [re.sub(r" +#.*", "", text) for language, text in blocks(name) if language not in ("console", "text")]

    assert code(page) == code(f"{page.removesuffix('.md')}.en.md")


def test_the_configuration_reference_is_what_the_code_says() -> None:
    tool = load_tool("config_reference")
    pages, missing = tool.make_pages()
    assert not missing, "tools/config_reference_zh.yaml has no Chinese for these"
    for language, text in pages.items():
        assert read(tool.PAGES[language]) == text, "run python tools/config_reference.py"


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
