# Every target works on a fresh clone; `make demo` is the place to start.
PYTHON ?= python3
# A CPU build of torch is enough: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
# Where `make docs` serves the site.
PORT ?= 8000
VENV := .venv
RUN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The suite's models are tiny: more threads only wait for each other.
export OMP_NUM_THREADS ?= 1

.PHONY: install demo test coverage check docs docs-build notebooks dist soak audit format clean

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	$(RUN)/pip install --quiet --editable '.[dev]'
	touch $(STAMP)

demo: install
	$(RUN)/deepteach train

# A file's tests share fixtures, so each file stays with one process; the longest begin first.
test: install
	$(RUN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST)

# The same tests, and which lines they reach: a third slower, so `make test` does without.
coverage:
	$(MAKE) test PYTEST='--cov --cov-report=term:skip-covered'

check: install
	$(RUN)/ruff format --check deepteach tests docs examples experiments
	$(RUN)/ruff check deepteach tests docs examples experiments
	$(RUN)/pyright
	$(MAKE) docs-build
	$(MAKE) coverage

# The site, into build/site; a warning is an error.
docs-build: install
	$(RUN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env docs build/site

docs: docs-build
	$(RUN)/python -m http.server --bind 127.0.0.1 --directory build/site $(PORT)

# The outputs that docs/notebooks is committed with.
notebooks: install
	$(RUN)/python experiments/notebooks.py

# The archive of sources and the wheel, and what an index would refuse about them.
dist:
	rm -rf dist
	$(PYTHON) -m venv build/dist
	build/dist/bin/pip install --quiet 'build>=1.2,<2' 'twine>=6,<7'
	build/dist/bin/python -m build --outdir dist .
	build/dist/bin/twine check --strict dist/*

# Real processes killed, interrupted, damaged and poisoned; writes results/soak.log.
soak: install
	$(RUN)/python experiments/soak.py $(SOAK)

# The locked versions against the public advisories; those know no local version (+cpu).
# --strict: what could not be looked up is a failure.
audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet 'pip-audit>=2.7,<3'
	sed -n 's/^\([a-z0-9.-]*==[^ +]*\).*/\1/p' requirements-dev.lock > build/audit/requirements.txt
	build/audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off \
		--requirement build/audit/requirements.txt

format: install
	$(RUN)/ruff format deepteach tests docs examples experiments
	$(RUN)/ruff check --fix deepteach tests docs examples experiments

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage
