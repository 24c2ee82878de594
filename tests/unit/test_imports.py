"""Without these, `import glmtune` could take seconds, or leave transformers unable to load ChatGLM."""

import sys

import pytest

import glmtune
import processes


def _run(code: str) -> str:
    done = processes.run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'peft', 'datasets', 'pydantic', 'sentencepiece', 'numpy'}"
    assert _run(f"import sys, glmtune, glmtune.errors; print({heavy} & set(sys.modules))") == "set()"


AUTO_CLASSES = """
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
config = AutoConfig.for_model("chatglm", num_layers=1, hidden_size=8, ffn_hidden_size=8, kv_channels=4,
                              num_attention_heads=2, padded_vocab_size=16)
for auto_class in (AutoModel, AutoModelForCausalLM):
    print(type(auto_class.from_config(config)).__module__)
"""
OURS = ["glmtune.models.chatglm.modeling"] * 2


@pytest.mark.parametrize(
    "imports",
    [
        "import importlib.util, glmtune; importlib.util.find_spec('transformers')",  # which finds, but does not import
        "import transformers; import glmtune",
        "from glmtune.models.chatglm.configuration import ChatGLMConfig",
    ],
)
def test_the_auto_classes_know_chatglm(imports) -> None:
    assert _run(f"{imports}\n{AUTO_CLASSES}").split() == OURS


def test_public_names() -> None:
    assert len(glmtune.__all__) == len(set(glmtune.__all__))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = glmtune.nothing
    code = "import glmtune\nfor name in glmtune.__all__: print(name, getattr(glmtune, name))"
    shown = _run(code).splitlines()
    assert [line.split()[0] for line in shown] == glmtune.__all__
    assert f"__version__ {glmtune.__version__}" in shown


def test_completion_offers_the_public_names_alone() -> None:
    code = "import glmtune, glmtune.prompts; glmtune.Message; print(dir(glmtune) == sorted(glmtune.__all__))"
    assert _run(code) == "True"
