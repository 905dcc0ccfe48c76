"""The documentation is true: links lead somewhere, its programs run, its promises are tested."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.architecture.tree import ROOT, files, shown

PAGES = sorted(files(".md"))
LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\S*)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def _prose(page: Path) -> str:
    return re.sub(r"`[^`\n]*`", "", BLOCK.sub("", page.read_text()))


def _anchors(page: Path) -> set[str]:
    """The anchors a page's headings have, as hosting platforms make them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_links_lead_somewhere(page: Path) -> None:
    assert page.read_text().strip()
    broken = []
    for target in LINK.findall(_prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(target)
    assert broken == []


def test_every_page_is_reachable_from_the_readme() -> None:
    seen: set[Path] = set()
    queue = [ROOT / "README.md"]
    while queue:
        page = queue.pop()
        if page in seen:
            continue
        seen.add(page)
        for target in LINK.findall(_prose(page)):
            file = (page.parent / target.partition("#")[0]).resolve()
            if file.suffix == ".md" and file.exists():
                queue.append(file)
    assert [shown(page) for page in PAGES if page not in seen] == []


def _programs() -> list[tuple[str, str]]:
    return [
        (f"{shown(page)}-{number}", code)
        for page in PAGES
        for number, (language, rest, code) in enumerate(BLOCK.findall(page.read_text()))
        if language == "python" and "run" in rest.split()
    ]


def test_there_are_programs_to_run() -> None:
    assert {name.rpartition("-")[0] for name, _ in _programs()} >= {"README.md", "docs/concepts.md"}


@pytest.mark.parametrize(("name", "code"), _programs(), ids=[name for name, _ in _programs()])
def test_programs_run(name: str, code: str, tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(file)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), name


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_python_in_the_documentation_is_python(page: Path) -> None:
    blocks = [code for language, _, code in BLOCK.findall(page.read_text()) if language == "python"]
    for code in blocks:
        compile(
            f"async def block():\n    {code.replace(chr(10), chr(10) + '    ')}",
            shown(page),
            "exec",
        )
    assert page.read_text().count("```") % 2 == 0


def _ids_in_docstrings(path: Path) -> set[str]:
    """The promises that the docstrings of a file's tests name."""
    return {
        promise
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        for promise in re.findall(r"\bP\d+\b", ast.get_docstring(node) or "")
    }


def test_every_promise_has_a_test_that_names_it() -> None:
    guarantee = (ROOT / "docs" / "guarantee.md").read_text()
    promised = set(re.findall(r"^\| (P\d+) \|", guarantee, re.MULTILINE))
    assert promised >= {"P1", "P10"}
    tested = set().union(*map(_ids_in_docstrings, files(".py", under="tests")))
    assert promised - tested == set(), "promised, and tested by nothing"
    assert tested - promised == set(), "tested, and promised nowhere"


def test_every_setting_in_the_documentation_exists() -> None:
    from forze.application.contracts.cache import CacheSpec
    from forze.application.integrations.document.stats import CacheStats
    from forze_redis import RedisCacheConfig

    cached = (ROOT / "docs" / "cached-reads.md").read_text()
    for cls in (CacheSpec, RedisCacheConfig):
        table = cached.partition(f"| `{cls.__name__}` |")[2].partition("\n\n")[0]
        named = set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
        assert named
        assert named <= set(cls.__dataclass_fields__)
    operations = (ROOT / "docs" / "operations.md").read_text()
    table = operations.partition("| field | counts |")[2].partition("\n\n")[0]
    first_cells = "\n".join(line.split("|")[1] for line in table.splitlines() if line[:2] == "| ")
    assert set(re.findall(r"`(\w+)`", first_cells)) == set(CacheStats.__dataclass_fields__)
