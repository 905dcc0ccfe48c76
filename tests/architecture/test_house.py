"""The house's rules that a machine can keep: names, docstrings, scripts, nothing of one machine."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from tests.architecture.tree import ROOT, files, shown

SCRIPTS = sorted(files(".lua", under="src"))
LUA_HEADER = ("Purpose:", "KEYS:", "ARGV:", "Reply:", "Cost:", "Server:")

# In pieces, so that this file does not find itself.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.])/(?:wo" + r"rk|ro" + r"ot|ho" + r"me/\w+)/",
    "unfinished work": r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX)\b|\bfor " + r"now\b",
    "a package registry's address": r"pypi\.o" + r"rg|pythonhosted\.o" + r"rg|index-" + r"url",
    "an issue's number": r"\b[Ii]ssue " + r"#?\d",
}
VAGUE = {"utils", "helpers", "common", "misc", "base", "impl"}
TEXT = (
    ".py",
    ".md",
    ".lua",
    ".toml",
    ".txt",
    ".yml",
    "justfile",
    "run",
    ".example",
    ".sql",
    ".jinja",
    "endif %}",
)


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_that_does_not_belong_in_the_tree(what: str) -> None:
    found = [
        f"{shown(path)}:{number}: {line.strip()[:80]}"
        for path in files(*TEXT)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(FORBIDDEN[what], line)
    ]
    assert found == []


def test_no_vague_module_names() -> None:
    assert [shown(path) for path in files(".py", under="src") if path.stem in VAGUE] == []


def test_no_lock_file_is_committed_with_addresses() -> None:
    requirements = (ROOT / "requirements-dev.txt").read_text().splitlines()
    assert requirements
    for line in requirements:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[\w.]+( ; [\w .<>!='_-]+)?", line), line
    assert "uv.lock" in (ROOT / ".gitignore").read_text().split()


def test_every_script_says_what_it_takes_gives_and_costs() -> None:
    assert SCRIPTS
    for path in SCRIPTS:
        comments = [
            line.removeprefix("--").strip()
            for line in path.read_text().splitlines()
            if line.startswith("--")
        ]
        header = "\n".join(comments)
        missing = [each for each in LUA_HEADER if each.lower() not in header.lower()]
        assert missing == [], f"{shown(path)}: its header does not say {missing}"


def _public(tree: ast.Module) -> list[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


@pytest.mark.parametrize("path", sorted(files(".py", under="src")), ids=shown)
def test_modules_and_public_names_say_what_they_are(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree), "the module has no docstring"
    assert [node.name for node in _public(tree) if not ast.get_docstring(node)] == []


CAN_FAIL = re.compile(
    r"\braises\b|\bfail\b|(^|[._])(assert|check|expect|must|run|until|eventually|timeout)"
)


def _asserts(node: ast.AST) -> bool:
    """Whether it can fail: an assertion, something that must raise, or a bounded wait."""
    return any(
        isinstance(each, ast.Assert)
        or (isinstance(each, ast.Call) and CAN_FAIL.search(ast.unparse(each.func)))
        for each in ast.walk(node)
    )


def test_every_test_asserts_something() -> None:
    silent = [
        f"{shown(path)}::{node.name}"
        for path in files(".py", under="tests")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not _asserts(node)
    ]
    assert silent == []


def test_no_long_sleeps_outside_faults() -> None:
    found = [
        f"{shown(path)}:{number}"
        for path in files(".py", under="tests")
        if "faults" not in path.parts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"sleep\((?:0?\.[2-9]|0\.1[0-9]|[1-9])", line)
    ]
    assert found == []


def test_the_table_of_the_wire_names_each_of_its_modules() -> None:
    wire = ROOT / "src" / "forze_redis" / "wire"
    table = (wire / "__init__.py").read_text()
    assert [each.stem for each in wire.glob("[!_]*.py") if f"``{each.stem}``" not in table] == []
