"""Writes a Modelfile, by which Ollama makes a model of a GGUF file."""

from pathlib import Path

from glmtune.adapters.inheritance import PromptRecord
from glmtune.errors import ConfigError
from glmtune.files import storage_faults, write_text
from glmtune.models.gguf_layout import GGUFLayout
from glmtune.prompts import Template


def write_modelfile(gguf_file: Path, layout: GGUFLayout, prompt: PromptRecord, *, base_file: str | None) -> Path:
    """Writes a Modelfile beside a GGUF file.

    Args:
        gguf_file: The model, or an adapter.
        layout: The model, as llama.cpp has it.
        prompt: The prompt settings of the run.
        base_file: For an adapter, the GGUF file of its base, beside it.

    Returns:
        The Modelfile.

    Raises:
        ConfigError: Ollama cannot render the prompt template.
        StorageError: It cannot be written.
    """
    check_template(layout, prompt.template)
    own = f"./{gguf_file.name}"
    lines = [f"FROM {base_file or own}"]
    if base_file:
        lines.append(f"ADAPTER {own}")
    lines.append(f'TEMPLATE """{layout.ollama_template}"""')
    if prompt.system:
        lines.append(f"SYSTEM {_quoted(prompt.system)}")
    lines += [f'PARAMETER stop "{stop}"' for stop in layout.stops]
    target = modelfile_of(gguf_file)
    with storage_faults(target):
        write_text(target, "\n".join(lines) + "\n")
    return target


def modelfile_of(gguf_file: Path) -> Path:
    """Where the Modelfile of a GGUF file is."""
    return gguf_file.with_name(f"{gguf_file.stem}.Modelfile")


def check_template(layout: GGUFLayout, template: Template) -> None:
    """Checks that Ollama can render a prompt template.

    Raises:
        ConfigError: It cannot.
    """
    if layout.ollama_template is None:
        raise ConfigError(f"Ollama cannot render the {template} template, which numbers its rounds; leave out --ollama")


def _quoted(text: str) -> str:
    """A value that may have several lines; three quotation marks in a row would end it."""
    return '"""' + text.replace('"""', "'''") + '"""'
