# Every recipe sets up what it needs: Python 3.11 or later, `pip install uv rust-just`, nothing else.

set positional-arguments := true

# Use a Python that is there; never download one.
export UV_PYTHON_DOWNLOADS := "never"
venv := env("FORZE_VENV", justfile_directory() / ".venv")
python := venv / "bin/python"

# List the recipes
default:
    @just --list --unsorted

# Cached reads on servers of its own; `just demo push` is one step of it, `just demo locks` another recipe
demo name="main": _setup
    #!/usr/bin/env bash
    set -euo pipefail
    cd "{{ justfile_directory() }}/examples/recipes"
    name=${1%.py} name=${name//-/_}
    steps=$(cd cache_reads && grep -l 'sys.exit(perform(' *.py | sed 's/\.py$//')
    recipes=$(ls)
    if grep -qxF -e "$name" <<<"$steps"; then
        cd cache_reads
        exec "{{ python }}" "$name.py"
    elif grep -qxF -e "$name" <<<"$recipes"; then
        cd "$name"
        exec "{{ python }}" main.py
    fi
    echo "just demo: there is no '$1'; there are the recipes" $recipes "and the steps of cache_reads:" $steps >&2
    exit 2

# A shop with two replicas, a worker and customers, on its own servers: --seconds 30, --chaos, --stay
shop *args: _setup
    @cd "{{ justfile_directory() }}/examples/shop" && exec "{{ python }}" main.py "$@"

# Run the tests, a file per worker at a time; arguments go to pytest (`-n 0`: one after another)
test *args: _setup
    @"{{ python }}" -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"

# Check style, imports between layers, and formatting
lint: _setup
    @"{{ python }}" -m ruff check .
    @"{{ python }}" -m ruff format --check .
    @"{{ venv }}/bin/lint-imports" --no-cache

# Check types, strictly
types: _setup
    @"{{ python }}" -m mypy --strict src tests

# Put the code into the project's format
fmt: _setup
    @"{{ python }}" -m ruff check --fix .
    @"{{ python }}" -m ruff format .

# Check the documentation: links, runnable blocks, promises and their tests
docs: _setup
    @"{{ python }}" -m pytest -q tests/architecture/test_docs.py

# Plant each known mistake in a copy of the source; the test named beside it must fail
mutants *args: _setup
    @"{{ python }}" -m tests.mutants.run "$@"

# Make every kind of project `forze new` can make; install a covering set, and run their tests
projects *args: _setup
    @"{{ python }}" -m tests.cli.matrix "$@"

# Explore every interleaving of the shipped protocol
model *args: _setup
    @"{{ python }}" -m tests.model.checker "$@"

# Four processes among faults, and a judge who looks for reads that are too old (minutes)
judge *args: _setup
    @"{{ python }}" -m tests.judge.run "$@"

# Measure against redis-py and PostgreSQL, side by side (minutes)
bench *args: _setup
    @"{{ python }}" -m bench "$@"

# Everything the project requires of a change
ci:
    @bash .ci/run

# Make the environment, once and again when what it holds has changed
_setup:
    #!/usr/bin/env bash
    set -euo pipefail
    cd "{{ justfile_directory() }}"
    wanted=$(cat requirements-dev.txt pyproject.toml | cksum)
    [ -x ""{{ python }}"" ] && [ "$(cat "{{ venv }}/.forze-ready" 2>/dev/null)" = "$wanted" ] && exit 0
    echo "setting up {{ venv }} ..." >&2
    [ -x ""{{ python }}"" ] || uv venv --quiet --python '>=3.11' "{{ venv }}"
    uv pip install --quiet --python ""{{ python }}"" -r requirements-dev.txt -e '.[all]'
    echo "$wanted" > "{{ venv }}/.forze-ready"
