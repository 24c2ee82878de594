"""A second family fits in: outside `models`, nothing names a family's modules, special tokens or classes."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import GPTJConfig

import glmtune
from glmtune.models.chatglm import ChatGLMConfig
from glmtune.models.family import Shape

PACKAGE = Path(glmtune.__file__).parent
OUTSIDE = sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "models")
MODULES = {
    "transformer", "encoder", "self_attention", "mlp", "dense_h_to_4h", "dense_4h_to_h", "word_embeddings",
    "output_layer", "input_layernorm", "post_attention_layernorm", "final_layernorm", "rotary_pos_emb",
}  # fmt: skip
# Modules that `LayerParts` has under the same names: code may ask it for them, but not look for them by name.
PARTS = {"query_key_value", "dense"}
# A list of layers, and an embedding, as a part of a name: `".layers."`, `"embedding" in name`.
PLACE = re.compile(r"\.layers\b|^(layers|embeddings?)\b[.\\]*$")
MODULE = re.compile(rf"\b({'|'.join((MODULES | PARTS) - {'transformer', 'encoder', 'mlp'})}|transformer\.\w+)\b")
TOKEN = re.compile(r"<\||\|>|\[s?g?MASK\]|\bsop\b|</s>")
# Settings of a ChatGLM's configuration, except those that `Shape` or other models have under the same names.
CONFIG = ChatGLMConfig.__annotations__.keys() - Shape.__annotations__.keys() - GPTJConfig.__annotations__.keys()
CLASS = re.compile(r"^(ChatGLM|GLM)[A-Z][a-z]\w*$")


def violations(tree: ast.AST, may_name_tokens: bool = False) -> Iterator[str]:
    """What a module names that only a family may; docstrings do not count."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [f"{getattr(node, 'module', '')}.{alias.name}" for alias in node.names]
            yield from (name for name in names if "models.chatglm" in name)
        elif isinstance(node, ast.Attribute) and (node.attr in MODULES | CONFIG or CLASS.match(node.attr)):
            yield f".{node.attr}"
        elif isinstance(node, ast.Name) and CLASS.match(node.id):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            forbidden = [MODULE, PLACE, CLASS] + ([] if may_name_tokens else [TOKEN])
            if any(pattern.search(node.value) for pattern in forbidden):
                yield repr(node.value)


def test_only_a_family_knows_its_models() -> None:
    found = {}
    for path in OUTSIDE:
        name = path.relative_to(PACKAGE).as_posix()
        is_renderer = name.startswith("prompts/")  # whose templates are made of tokens
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if named := [*violations(tree, may_name_tokens=is_renderer)]:
            found[name] = named
    assert found == {}, "ask the family instead"


@pytest.mark.parametrize(
    "code",
    [
        "from glmtune.models.chatglm import IncrementalDecoder",
        "def f():\n    import glmtune.models.chatglm.layers",
        "model.transformer",
        "layer.mlp.dense_4h_to_h",
        "name = 'transformer.encoder.layers.'",
        "is_head = 'output_layer' in name",
        "DEFAULTS = {'target_modules': ['query_key_value']}",
        "is_adapted = name.endswith('.dense')",
        "number = parts.index('layers')",
        "found = re.search(r'\\.layers\\.(\\d+)$', name)",
        "is_trained = 'embedding' in name",
        "token = f'<|{role}|>'",
        "prefix = '[gMASK]'",
        "def f(block: GLMBlock): ...",
        "isinstance(config, ChatGLMConfig)",
        "is_dropped = config.attention_dropout > 0",
        "max_length = model.config.seq_length",
        "size = base_config.kv_channels",
    ],
)
def test_the_check_sees(code: str) -> None:
    assert [*violations(ast.parse(code))]


def test_the_check_leaves_docstrings_and_names_of_products_alone() -> None:
    assert not [*violations(ast.parse('"""The `output_layer`, after <|user|>."""\nname = "ChatGLM3-6B"'))]
