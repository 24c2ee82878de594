"""The Tab key: `glmtune --install-completion` in a shell, and what is then completed."""

import os
import sys
from pathlib import Path

import pytest

import processes

BIN = Path(sys.executable).parent
COMPLETE = """
source ~/.bash_completions/glmtune.sh
COMP_WORDS=({words} "{begun}"); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
_glmtune_completion glmtune
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def run(shell: str, script: str, home: Path) -> str:
    environment = {**os.environ, "HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = processes.run(shell, "-c", script, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home directory where completion for bash has been installed, from bash."""
    folder = tmp_path_factory.mktemp("home")
    run("bash", "glmtune --install-completion; true", folder)
    return folder


def test_it_is_there_in_the_next_bash(home: Path) -> None:
    assert ".bash_completions/glmtune.sh" in (home / ".bashrc").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "begun", "expected"),
    [
        ("glmtune", "tr", ["train"]),
        ("glmtune data", "", ["check", "show", "stats", "convert", "dedupe", "split", "sample", "merge"]),
        ("glmtune chat run --dtype", "", ["auto", "float32", "bfloat16", "float16"]),
        ("glmtune chat run --quantize", "n", ["none", "nf4"]),
        ("glmtune generate run --template", "chat", ["chatglm3", "chatglm2"]),
        ("glmtune train", "", []),  # the shell itself then completes files
    ],
)
def test_bash_completes_commands_and_values(home: Path, words: str, begun: str, expected: list[str]) -> None:
    assert run("bash", COMPLETE.format(words=words, begun=begun), home).split() == expected


def test_zsh_gets_a_completion_of_its_own(tmp_path: Path) -> None:
    zsh = tmp_path / "zsh"  # bash by the name of zsh, which is what the shell is recognised by
    zsh.symlink_to(run("bash", "command -v bash", tmp_path).strip())
    run(str(zsh), "glmtune --install-completion; true", tmp_path)
    assert "compdef _glmtune_completion glmtune" in (tmp_path / ".zfunc" / "_glmtune").read_text(encoding="utf-8")
    assert "compinit" in (tmp_path / ".zshrc").read_text(encoding="utf-8")


@pytest.mark.parametrize(("line", "expected"), [("glmtune chat x --dtype b", "bfloat16"), ("glmtune merge ", "_files")])
def test_zsh_is_told_values_and_files(tmp_path: Path, line: str, expected: str) -> None:
    asked = f"_GLMTUNE_COMPLETE=complete_zsh _TYPER_COMPLETE_ARGS='{line}' glmtune"
    assert expected in run("bash", asked, tmp_path)


def test_a_home_that_cannot_be_written_to_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "home").touch()  # so that even root cannot write there
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = processes.run("bash", "-c", "glmtune --install-completion; exit $?", env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: --install-completion: {tmp_path / 'home'}")
    assert "glmtune --show-completion" in done.stderr
    assert done.stderr.count("\n") == 1


def test_matplotlib_is_quiet_about_a_home_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    script = (
        "import sys; from glmtune import cli; sys.argv = ['glmtune', '--version']\n"
        "try: cli.main()\n"
        "except SystemExit: import matplotlib.font_manager"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("MPLCONFIGDIR", "XDG_CACHE_HOME")}
    done = processes.run(sys.executable, "-c", script, env={**environment, "HOME": str(tmp_path / "home")})
    assert (done.returncode, done.stderr) == (0, "")
