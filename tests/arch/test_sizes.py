"""Small enough to read, and documented where a reader comes in from outside."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.arch.tree import PACKAGES, Module, modules_under, package_modules, read_module
from tests.engines import ROOT

MODULE_LINES: Final = 400
TEST_MODULE_LINES: Final = 500
FUNCTION_LINES: Final = 60

EXCEPTIONS: Final[dict[str, str]] = {}
"""Names (as `too_large` gives them) that may be larger, each with its reason."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sized_modules() -> Iterator[Module]:
    yield from package_modules()
    for folder in ("examples", "tests"):
        yield from modules_under(ROOT / folder)


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def too_large(module: Module) -> Iterator[str]:
    """The module, and each function of it, that is longer than it may be."""
    most = TEST_MODULE_LINES if module.name.startswith("tests/") else MODULE_LINES
    if module.lines > most:
        yield module.name
    for function in functions(module.tree):
        assert function.end_lineno is not None
        if function.end_lineno - function.lineno + 1 > FUNCTION_LINES:
            yield f"{module.name}:{function.name}"


def test_modules_and_functions_are_small() -> None:
    found = {name for module in sized_modules() for name in too_large(module)}
    assert found - EXCEPTIONS.keys() == set()
    assert EXCEPTIONS.keys() - found == set(), "this exception is not needed any more"


def is_protocol(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases)


def methods(node: ast.ClassDef) -> list[Function]:
    """The methods that others call; a property is a value, and its type says the most of it."""
    return [child for child in node.body if isinstance(child, Function) and not child.decorator_list]


def promises(module: Module) -> Iterator[Function | ast.ClassDef]:
    """What, of all that we ship, must say in words what it promises to those who cannot see behind it.

    A protocol and its methods, since caller and implementation never meet; a lone method may leave it to its
    protocol. In the services each class and each coroutine: those are the use cases, and they may fail.
    """
    if module.name.startswith("tests/"):
        return
    service = module.name.startswith("spawn/services/")
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef) and is_protocol(node):
            yield node
            yield from methods(node) if len(methods(node)) > 1 else []
        elif isinstance(node, ast.ClassDef) and service:
            yield node
            yield from (method for method in methods(node) if isinstance(method, ast.AsyncFunctionDef))
    if service:
        yield from (node for node in module.tree.body if isinstance(node, ast.AsyncFunctionDef))


def undocumented(module: Module) -> Iterator[str]:
    """Modules without a reason to exist, and unspoken promises."""
    if module.tree.body and ast.get_docstring(module.tree) is None:
        yield module.name
    for node in promises(module):
        if not node.name.startswith("_") and ast.get_docstring(node) is None:
            yield f"{module.name}:{node.name}"


def test_the_ways_in_are_documented() -> None:
    assert [name for module in sized_modules() for name in undocumented(module)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_typed(package: str) -> None:
    assert (PACKAGES[package] / "py.typed").is_file()


def planted(folder: Path, name: str, text: str) -> Module:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return read_module(path, folder)


def test_a_planted_giant_is_seen(tmp_path: Path) -> None:
    body = "    x = 1\n"
    module = planted(tmp_path, "a.py", "def small():\n" + body * 59 + "def big():\n" + body * 60)
    assert list(too_large(module)) == ["a.py:big"]
    assert list(too_large(planted(tmp_path, "b.py", "x = 1\n" * 401))) == ["b.py"]
    assert list(too_large(planted(tmp_path, "tests/c.py", "x = 1\n" * 500))) == []
    assert list(too_large(planted(tmp_path, "tests/d.py", "x = 1\n" * 501))) == ["tests/d.py"]


def test_a_planted_silence_is_seen(tmp_path: Path) -> None:
    protocol = (
        '"""Why."""\nclass P(Protocol):\n    """Promise."""\n    def a(self): ...\n    def b(self): ...\n'
    )
    assert list(undocumented(planted(tmp_path, "a.py", "x = 1\n"))) == ["a.py"]
    assert list(undocumented(planted(tmp_path, "b.py", protocol))) == ["b.py:a", "b.py:b"]
    service = '"""Why."""\nclass View: ...\nasync def act(): ...\ndef show(): ...\nasync def _help(): ...\n'
    path = "spawn/services/c.py"
    assert list(undocumented(planted(tmp_path, path, service))) == [f"{path}:View", f"{path}:act"]
    assert list(undocumented(planted(tmp_path, "d.py", ""))) == []
