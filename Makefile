# make app: serve the page. make test: the whole suite. make demo: the main job without a page.
# make bench: speed, memory and loss of training against TRL and the plain Trainer (under half an hour).
# make bench-chat: what an answer costs (minutes). make bench-page: how quick the page stays beside a training.
# make bench-quote: what runs were said to need, and what they and their reports took (half an hour with bf16, twice that without).
# make torture: a hundred kills at random moments; each run must end as one that was never killed. And each request of a
# push broken in every way.
# make load: fifty visitors for ten minutes beside a training: how soon a click is answered, and whether anything grows.
# make bench-data: what large datasets cost (a quarter of an hour).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# The first of these that is there and works: torch has a small CPU build for 3.11, the Space uses 3.12.
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do $$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: app demo test torture load lint bench bench-chat bench-page bench-quote bench-data clean

app: $(VENV)/.app
	@exec $(PY) app.py

demo: $(VENV)/.app
	@exec $(PY) -m tuner.demo

test: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m pytest -q
	@# Once more as on a processor without bf16, where training computes in fp32.
	ONEDNN_MAX_CPU_ISA=AVX2 TUNER_NATIVE=0 $(PY) -m pytest -q tests/test_fast.py tests/test_models.py

torture: $(VENV)/.dev
	@$(PY) -m tests.torture
	TUNER_TORTURE=1 $(PY) -m pytest -q tests/test_publish.py

load: $(VENV)/.dev
	@$(PY) -m tests.load

lint: $(VENV)/.dev
	$(PY) -m ruff check .

bench: $(VENV)/.dev
	@$(PY) -m tests.bench.training

bench-page: $(VENV)/.dev
	@$(PY) -m tests.bench.page

bench-data: $(VENV)/.dev
	@$(PY) -m tests.bench.data

bench-quote: $(VENV)/.dev
	@$(PY) -m tests.bench.quote

bench-chat: $(VENV)/.dev
	@$(PY) -m tests.bench.chat

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Tuner needs Python 3.11 or 3.12; neither was found. Install one, or name it: make app PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade pip

$(VENV)/.app: requirements.txt requirements-starter.txt | $(VENV)/bin/python
	@echo "Installing what the app needs (a few minutes, once) ..."
	@# A CPU build of torch, where pip finds one, is a tenth of the size of the CUDA build.
	$(PY) -m pip install -q "torch==2.13.0"
	$(PY) -m pip install -q -r requirements.txt
	$(PY) -m pip install -q --no-deps -r requirements-starter.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.app requirements-dev.txt
	$(PY) -m pip install -q -r requirements-dev.txt
	@# A card's passes are tested through Triton's interpreter. Apart, or every training would import it.
	$(PY) -m pip install -q --no-deps --upgrade --target $(VENV)/triton "triton>=3.6,<3.10"
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
