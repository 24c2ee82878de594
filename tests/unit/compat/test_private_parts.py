"""Without these, private parts of other libraries could come to be used where no canary watches them."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import glmtune

PACKAGE = Path(glmtune.__file__).parent


def _private_touches(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Where a module reads or writes what another library keeps to itself."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    public = {"_replace", "_asdict", "_fields", "_exit"}  # of named tuples and os, which are documented
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("glmtune"):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls", "super()"):
            names = [node.attr] if node.attr not in own | public else []
        else:
            continue
        for name in names:
            if (name.startswith("_") and not name.startswith("__")) or ast.unparse(node).startswith("torch.ops.aten."):
                yield node.lineno, name


def test_private_parts_of_other_libraries_are_touched_in_compat_alone() -> None:
    touches = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "compat.py"
        for line, name in _private_touches(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not touches, f"give each a function in glmtune.compat with a canary in tests/unit/compat: {touches}"


def test_the_check_sees_private_parts() -> None:
    tree = ast.parse("from a._b import c\nimport a._d\nx._e = torch.ops.aten.f(1)\nself._own = g._own\n_own = 1")
    assert {name for _, name in _private_touches(tree)} == {"_b", "_d", "_e", "f"}


def test_importing_compat_imports_nothing_of_what_it_is_about() -> None:
    code = "import sys, glmtune.compat; print([m for m in ('torch', 'transformers', 'accelerate') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
