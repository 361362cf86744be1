# Everything is installed in .venv, in the versions of requirements.lock.
PYTHON ?= python3
BIN = .venv/bin
# If it were set, each of the tests' many processes would compile all packages again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install example test integration docs notebooks lint format typecheck bench against soak langchain-core lock clean

install: .venv/ready

.venv/ready: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip install --quiet --python .venv --editable '.[all]' --group dev --constraints requirements.lock
	touch $@

example: install
	$(BIN)/python examples/langchain_chain.py

test: install
	$(BIN)/python -m pytest -n auto --dist worksteal

# Tests that need PostgreSQL, Ray or Chromium. These are installed if possible, and the tests are skipped without them.
integration: install
	.ci/integration-packages
	$(BIN)/uv pip install --quiet --python .venv --group integration --constraints requirements.lock
	# MLflow's LlamaIndex flavor only reads this package's version. Its dependencies are older than those of the tests.
	$(BIN)/uv pip install --quiet --python .venv --no-deps 'llama-index>=0.14.22,<0.15'
	$(BIN)/python -m pytest -m integration tests/integration

# Build the site of docs/ in site/; a broken link or reference is an error.
docs: install
	$(BIN)/uv pip install --quiet --python .venv --group docs --constraints requirements.lock
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Execute the notebooks in examples/, and write their outputs.
notebooks: install
	$(BIN)/python tests/test_notebooks.py

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

typecheck: install
	$(BIN)/mypy

# Takes about seven minutes, and writes the table and picture of docs/figures.md.
bench: install
	$(BIN)/python tests/benchmarks/run.py --write

# Compare with another checkout that has its own environment (make install), as in `make against OTHER=../first`, in ten
# alternating pairs of processes. Takes about a quarter of an hour, and writes its tables and picture of docs/figures.md.
against: install
	$(BIN)/python tests/benchmarks/against.py $(OTHER) --write

# Tests that are too long for CI: 100,000 hostile inputs, 10,000 renders under a hundred faults, a batch of 5,000 traces, and
# the long benchmarks.
soak: integration
	POMLFLOW_HOSTILE_INPUTS=100000 POMLFLOW_SOAK_RENDERS=10000 $(BIN)/python -m pytest --timeout 7200 \
	  tests/engine/test_hostile_values.py tests/engine/test_soak.py
	POMLFLOW_TRACED_CALLS=5000 $(BIN)/python -m pytest --timeout 7200 tests/tracking/test_cases.py -k batch
	$(BIN)/python tests/benchmarks/run.py --soak
	$(BIN)/python tests/benchmarks/traced.py
	$(BIN)/python tests/benchmarks/ray_rows.py

# Run langchain-core's own tests with pomlflow's handler in every run; takes about half an hour.
langchain-core: install
	$(BIN)/uv venv --quiet --clear --seed --python $(BIN)/python .venv-langchain-core
	grep -v '^syrupy==' requirements.lock >.venv-langchain-core/constraints.txt # its tests need an older one
	$(BIN)/uv pip install --quiet --python .venv-langchain-core --editable '.[langchain]' \
	  --constraints .venv-langchain-core/constraints.txt \
	  pytest pytest-asyncio pytest-mock pytest-socket pytest-benchmark pytest-codspeed syrupy freezegun responses \
	  'blockbuster<1.6' grandalf numpy langchain-tests
	.venv-langchain-core/bin/python tests/benchmarks/langchain_core_tests.py

lock: install
	$(BIN)/uv pip compile pyproject.toml --quiet --all-extras --group dev --group docs --group integration --universal --python-version 3.11 --upgrade --no-annotate --no-header --output-file requirements.lock

clean:
	rm -rf .venv .venv-langchain-core build dist site .pytest_cache .mypy_cache .ruff_cache
