# Everything sets itself up: `make demo` and `make test` work in a fresh clone. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# The range of torch stands in pyproject.toml; this reads it there.
TORCH = $(shell $(BIN)/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(next(d for d in p['dependencies'] if d.startswith('torch')))")
EXECUTORCH = $(shell $(BIN)/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(p['optional-dependencies']['executorch'][0])")
TORCH_TENSORRT = $(shell $(BIN)/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(p['optional-dependencies']['tensorrt'][0])")
# More words for the `pip install` of torch, such as an index of CPU builds: make venv TORCH_PIP='--index-url URL'
TORCH_PIP ?=
# More words for pytest, such as: make test PYTEST='-k causal -x'
PYTEST ?=
# Programs for the fuzzer, and more words for it, such as: make fuzz N=100000 FUZZ='--seed 7 --minutes 30'
N ?= 2000
FUZZ ?=
# More words for the sweep, such as: make zoo ZOO='--only qwen2,bert' or ZOO='--missing' to go on where it was stopped
ZOO ?=
# More words for the releases, such as: make zoo-releases RELEASES='--releases 4.53.* latest --models llama bart'
RELEASES ?= --write
# More words for the benchmarks, such as: make bench BENCH='--suite sliding --dtypes float32' or BENCH='--missing' to go on
# where it was stopped, and for the latency on TensorRT: make bench-tensorrt BENCH='--models Qwen3-0.6B --rounds 9'
BENCH ?=
# More words for the demo, such as: make demo DEMO='--layers 4'
DEMO ?=

# pytest-xdist runs two workers; one thread in each keeps two cores busy and no more.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# The benchmarks take a thread per core themselves.
BENCH_ENV := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
MYPY_ENV := MYPYPATH=$(VENV)/src-link

define CHECK_PYTHON
import importlib.util, os, shutil, sys, sysconfig
missing = []
if sys.version_info < (3, 11):
    sys.exit(f"attnlower needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. "
             "Name another one: make PYTHON=/path/to/python3.11")
if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
    missing.append("python3-venv")
if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
    missing.append("python3-dev")
if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
    missing.append("g++")
if missing:
    sys.exit("attnlower needs what this machine lacks (Inductor compiles C++). As root: apt-get install " + " ".join(missing))
endef
export CHECK_PYTHON

.PHONY: help venv lint format test test-executorch fuzz zoo zoo-releases wheel-check sdist docs demo demo-quick bench bench-quick bench-page bench-save bench-tensorrt readme-tables clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

venv: $(VENV)/.installed ## create .venv and install attnlower (editable) with all it needs for tests and demo

$(VENV)/.created:
	@if [ -z "$(PYTHON)" ]; then echo "no python3 found: apt-get install python3 python3-venv python3-dev" >&2; exit 1; fi
	@case "$(CURDIR)" in *[[:space:]]*) echo "torch's Inductor compiles nothing in a path with spaces: move '$(CURDIR)'" >&2; exit 1;; esac
	@"$(PYTHON)" -c "$$CHECK_PYTHON"
	"$(PYTHON)" -m venv $(VENV)
	mkdir -p $(VENV)/src-link
	ln -sfn ../.. $(VENV)/src-link/attnlower
	@touch $@

# torch on its own and first: left to the dependency resolver, a CUDA build of several GB may come instead.
$(VENV)/.torch: $(VENV)/.created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH_PIP) '$(TORCH)'
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,hf,docs]'
	@# torch_tensorrt without TensorRT, which its tests do on a reference: its own requirements are gigabytes for a GPU.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps '$(TORCH_TENSORRT)'
	@touch $@

# An environment of its own, with .venv behind it: ExecuTorch brings packages that transformers imports when it finds them.
$(VENV)/executorch/.installed: $(VENV)/.installed
	$(BIN)/python -m venv --clear --without-pip $(VENV)/executorch
	$(BIN)/python -c "import sysconfig as s; print(f'import site; site.addsitedir({s.get_paths()[\"purelib\"]!r})')" > $(VENV)/borrowed.pth
	mv $(VENV)/borrowed.pth $(VENV)/executorch/lib/python*/site-packages/
	$(BIN)/python -m pip --python $(VENV)/executorch/bin/python install --quiet --disable-pip-version-check '$(EXECUTORCH)'
	@touch $@

lint: venv ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MYPY_ENV) $(BIN)/mypy -p attnlower

format: venv ## let ruff reformat the sources and fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint ## set up, then ruff, mypy and pytest
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadgroup $(PYTEST)

test-executorch: $(VENV)/executorch/.installed ## what the real ExecuTorch runtime does with the programs (a few minutes)
	$(TEST_ENV) $(VENV)/executorch/bin/python -m pytest -n 2 tests/seq2seq/test_targets_executorch.py tests/examples -k "executorch or exporters" $(PYTEST)

fuzz: venv ## random mask programs against brute force, N of them in two processes: make fuzz N=100000
	PYTHONPATH=tests/fuzz $(TEST_ENV) $(BIN)/python -W ignore -m attnfuzz $(N) $(FUZZ)

zoo: venv ## sweep over every architecture of transformers and write tests/zoo/COVERAGE.md (an hour or two)
	cd tests/zoo && $(TEST_ENV) $(abspath $(BIN))/python -m sweep $(ZOO)

zoo-releases: venv ## run architectures under several releases of transformers, write tests/releases/RESULTS.md (half an hour)
	$(TEST_ENV) $(BIN)/python tests/releases/run.py $(RELEASES)

wheel-check: venv ## build sdist and wheel, check what they hold, run the wheel where nothing else is installed
	$(TEST_ENV) $(BIN)/python -m pytest tests/test_packaging.py

sdist: venv ## build the sdist and the wheel into dist/
	rm -rf dist
	$(BIN)/python -m build --quiet

docs: venv ## draw the documentation's pictures and graphs anew and build the site into site/, warnings are errors
	$(BIN)/python docs/tools/draw.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

demo: venv ## the main job: eager, Inductor, attnlower and a hand-made oracle side by side at 4096 tokens (a few minutes)
	$(BIN)/attnlower demo $(DEMO)

demo-quick: venv ## the same, cut down to less than a minute
	$(BIN)/attnlower demo --quick $(DEMO)

$(VENV)/.bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

bench: $(VENV)/.bench ## every benchmark beside eager, torch.compile and what one writes by hand (about 40 minutes on two idle cores)
	PYTHONPATH=bench $(BENCH_ENV) $(BIN)/python -W ignore -m attnbench --page bench/README.md $(BENCH)

bench-quick: $(VENV)/.bench ## a few small rows of each benchmark (a few minutes); results in .venv/bench-quick
	PYTHONPATH=bench $(BENCH_ENV) $(BIN)/python -W ignore -m attnbench --quick --dtypes float32 --output $(VENV)/bench-quick/results --page $(VENV)/bench-quick/README.md $(BENCH)

bench-page: $(VENV)/.bench ## write bench/README.md, bench/avx2/README.md and their plots from the JSON beside them
	PYTHONPATH=bench $(BIN)/python -W ignore -m attnbench --report --page bench/README.md
	PYTHONPATH=bench $(BIN)/python -W ignore -m attnbench --report --output bench/avx2/results --page bench/avx2/README.md

bench-save: venv ## run the demo in float32 and in bfloat16 and keep its JSON in bench/results/
	mkdir -p bench/results
	for dtype in float32 bfloat16; do \
	  $(BIN)/attnlower demo --dtype $$dtype --json $(DEMO) > $(VENV)/demo.json; \
	  mv $(VENV)/demo.json "bench/results/demo-$$dtype.json"; \
	done

bench-tensorrt: venv ## on a machine with TensorRT and a GPU: torch_tensorrt's latency and soundness, with and without attnlower
	@$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit('nothing was measured: torch in $(VENV) sees no CUDA GPU')"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tensorrt]'
	$(BIN)/python bench/tensorrt_soundness.py
	$(BIN)/python bench/tensorrt_latency.py $(BENCH)

readme-tables: venv ## write README's measurements from bench/results/
	$(BIN)/python bench/tables.py

clean: ## remove .venv and every cache
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
