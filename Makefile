# make run    run README.ipynb into out/README.ipynb        make lint   ruff over code and notebook
# make test   run it small under nbmake, then the tests     make page   the last run becomes README and docs/*.md
# make export  merge a run's adapter into its model         make gguf   and make a GGUF of that
# make docs   README.ipynb as a web page in out/docs/        make locks  resolve requirements/*.in again
# make slow   the tests that take longest                   make test-faults  cause each fault of the notebook's table
# make links  are the page's links to other sites alive?     make deploy-check  deploy/ by Anyscale's and KubeRay's
# make test-models  the notebook with a small model of each family
# make test-production  a job, a service, and load on it     make clean  delete out/ and the environments
PYTHON ?= python3
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.SILENT:
# What waits for a package index or a browser runs beside what computes.
MAKEFLAGS += $(if $(filter test,$(MAKECMDGOALS)),-j2)

BIN := .venv/bin
DOCS_BIN := .venv-docs/bin
DEPLOY_BIN := .venv-deploy/bin
# No statistics are sent, no bytecode is held back, and the kernel is this environment's.
export RAY_USAGE_STATS_ENABLED := 0
export VLLM_NO_USAGE_STATS := 1
export HF_HUB_DISABLE_TELEMETRY := 1
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Without a home folder that can be written, installers cache below this one.
ifneq ($(shell test -d "$$HOME" -a -w "$$HOME" && echo yes),yes)
export UV_CACHE_DIR ?= $(CURDIR)/.cache/uv
export PIP_CACHE_DIR ?= $(CURDIR)/.cache/pip
endif

.PHONY: run export gguf test notebook browser test-faults test-models test-production slow deploy-check lint page docs links locks clean
run: .venv/.ready
	python -m tutorial.run

# With the settings of the run; PUSH_TO=owner/name pushes the merged model to the Hugging Face hub.
export: .venv/.ready
	python -m tutorial.export $${PUSH_TO:+--push-to "$$PUSH_TO"}

# After make export; TYPE=q8_0 halves the file.
gguf: .venv/.ready .gguf/.ready
	python -m tutorial.gguf $${TYPE:+--type "$$TYPE"}

# Three files of tests at a time: some wait for most of their time. First the three that take longest,
# or the last of them would wait alone. (A folder that holds them would undo this: pytest reads it in its order.)
LONGEST := $(patsubst %,tests/test_%.py,endpoint cluster storage)
test: notebook browser lint deploy-check
	pytest -q -n 3 --dist loadfile --no-loadscope-reorder $(LONGEST) $(filter-out $(LONGEST),$(wildcard tests/test_*.py))

notebook: .venv/.ready
	rm -f out/results.json out/tested.json
	$(STEP)
	step "Test: README.ipynb on a few rows" \
	  env TRAIN_ROWS=$${TRAIN_ROWS:-64} VAL_ROWS=8 TEST_ROWS=8 pytest -q --nbmake --nbmake-timeout=1200 README.ipynb
	mv out/results.json out/tested.json

browser: docs
	$(DOCS_BIN)/pytest -q --confcutdir=tests/browser tests/browser

slow: .venv/.ready
	pytest -q -m slow

# The other half of tests/test_deploy.py: nothing of Ray is needed.
deploy-check: .venv-deploy/.ready
	$(DEPLOY_BIN)/pytest -q --confcutdir=tests/vendors tests/vendors

# What they saw is the table of the page's stage 7.
test-faults: .venv/.ready
	timeout 1800 pytest -q tests -m faults --faults-json=benchmarks/results/faults-cpu.json --durations=0

test-production: .venv/.ready
	pytest -q -m production --durations=0

# The table of base models in docs/configuration.md.
test-models: .venv/.ready
	pytest -q -m models --models-json=benchmarks/results/models-cpu.json --durations=0

lint: .venv/.ready .venv-docs/.ready
	ruff check --quiet .
	ruff format --quiet --check .
	$(DOCS_BIN)/hadolint containerfile

page: .venv/.ready
	python -m docs.page
	python -m images.draw_results
	python -m docs.render
	rm -rf images/outputs
	jupyter nbconvert --to markdown --template-file docs/readme.md.j2 README.ipynb --output README --log-level WARN \
	  --NbConvertApp.output_files_dir=images/outputs

# A warning, such as one of a link that leads nowhere, is an error. A site opens with index.html.
docs: .venv-docs/.ready
	rm -rf out/docs
	$(DOCS_BIN)/sphinx-build --quiet --fresh-env --fail-on-warning --keep-going -c docs -d out/doctrees . out/docs
	cp out/docs/README.html out/docs/index.html

# What the page links to elsewhere: not in `make test`, which needs no network but the package indexes.
links: .venv-docs/.ready
	$(DOCS_BIN)/sphinx-build --quiet -b linkcheck -c docs -d out/doctrees . out/links

locks: .venv/.ready
	cd requirements
	COMPILE="uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate"
	$$COMPILE uv.in -o uv.lock
	$$COMPILE docs.in -o docs.lock
	$$COMPILE deploy.in -o deploy.lock
	$$COMPILE --no-deps gguf.in -o gguf.lock
	$$COMPILE cpu.in --excludes cpu.excludes --no-emit-package torch -o cpu.lock \
	  --find-links $${PIP_FIND_LINKS:-https://download.pytorch.org/whl/cpu/torch/}

clean:
	rm -rf out .venv .venv-docs .venv-deploy .gguf

# `step TEXT COMMAND` says what it does and, every 10 seconds, that it still does.
define STEP
step() {
	echo "[$$(printf %4d $$SECONDS) s] $$1"
	(while sleep 10 > /dev/null 2>&1 && kill -0 $$$$; do echo "[$$(printf %4d $$SECONDS) s] $$1"; done) &
	local ticker=$$! failed=0
	"$${@:2}" || failed=$$?
	kill $$ticker; wait $$ticker 2> /dev/null || true
	return $$failed
}
endef

# PyTorch's CPU build stands on no package index but PyTorch's own. pip is asked for it alone, with the hashes of the
# lock: first among the wheels that pip was told of (PIP_FIND_LINKS, pip.conf), then on that index.
.venv/.ready: requirements/cpu.lock requirements/torch.lock requirements/uv.lock requirements/torchaudio.py
	# The interpreter itself: where this environment is active, `python3` is a link that is about to be deleted.
	BASE=$$(readlink -f "$$(command -v $(PYTHON))")
	"$$BASE" -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}: set PYTHON=python3.11")'
	$(STEP)
	rm -rf .venv
	step "Install: .venv" "$$BASE" -m venv .venv
	TORCH="--quiet --disable-pip-version-check --no-compile --no-deps --only-binary=:all: --require-hashes -r requirements/torch.lock"
	step "Install: PyTorch's CPU build, from PIP_FIND_LINKS" $(BIN)/pip install --no-index $$TORCH 2> /dev/null \
	  || step "Install: PyTorch's CPU build, from its index" \
	    $(BIN)/pip install --timeout 15 --retries 1 --index-url https://download.pytorch.org/whl/cpu $$TORCH \
	  || { echo "No torch 2.13.0+cpu: PyTorch's index cannot be reached; set PIP_FIND_LINKS to a folder that holds the wheel"; exit 1; }
	step "Install: uv" $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.lock
	step "Install: the packages of requirements/cpu.lock" \
	  uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements/cpu.lock
	SITE=$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')
	cp requirements/torchaudio.py "$$SITE"
	# Bytecode of what every engine imports at its start, on all cores at once; the rest is written at its first use.
	step "Install: bytecode" env -C "$$SITE" \
	  "$(CURDIR)/$(BIN)/python" -m compileall -q -j 0 -x testing torch vllm ray llamafactory peft accelerate datasets
	touch $@

# What the page is made and looked at with, and the vendors' models; nothing of what the notebook runs on, but its uv.
.venv-docs/.ready .venv-deploy/.ready: .venv-%/.ready: requirements/%.lock .venv/.ready
	$(STEP)
	uv venv --quiet --clear --python $(BIN)/python .venv-$*
	step "Install: .venv-$*" \
	  uv pip install --quiet --python .venv-$*/bin/python --only-binary :all: --require-hashes -r $<
	touch $@

# llama.cpp's converter, alone: what it needs besides is in .venv.
.gguf/.ready: requirements/gguf.lock .venv/.ready
	rm -rf .gguf
	uv pip install --quiet --target .gguf --no-deps --require-hashes -r $<
	touch $@
