# Everything a newcomer types. `make help` lists it.

# Where the environment forbids bytecode, each process that a test starts would compile every module again.
export PYTHONDONTWRITEBYTECODE =

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest
VISION ?= .venv-vision

.PHONY: help install demo serve test test-system test-vision deploy-test docs check bench chaos clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install: $(INSTALLED)  ## create the virtual environment with the pinned dependencies

# torch goes first, so that its pinned build is the one everything else is resolved against.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("syncnorm needs Python 3.11 or newer, got " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(INSTALLED)

demo: $(INSTALLED)  ## run one real job through the whole service, then stop everything
	$(BIN)/python -m syncnorm.service.cli.demo

serve: $(INSTALLED)  ## the embedded service, until Ctrl-C
	$(BIN)/python -m syncnorm.service.cli.main serve

# A process in which a test hangs outside of Python ends after 15 minutes, and the others go on. The system tests often
# wait for Ray, so three of them fill two cores: 27 minutes instead of 35.
PARALLEL := --no-loadscope-reorder -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true
IN_TWO := -n 2 $(PARALLEL)
IN_THREE := -n 3 $(PARALLEL)

test: $(INSTALLED)  ## the tests of every room
	$(PYTEST) tests -m 'not system and not chaos and not deploy' $(IN_TWO)

test-system: $(INSTALLED)  ## the whole service: real Ray and MLflow, killed processes, damaged data
	$(PYTEST) tests -m 'system and not chaos and not deploy' $(IN_THREE)

# torchvision goes with one torch, which is newer than ours, so these tests have an environment of their own.
$(VISION)/.installed: pyproject.toml constraints.txt constraints-vision.txt
	$(PYTHON) -m venv $(VISION)
	grep -v '^torch==' constraints.txt > $(VISION)/constraints.txt
	$(VISION)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vision.txt torch torchvision
	$(VISION)/bin/python -m pip install --quiet --disable-pip-version-check -c $(VISION)/constraints.txt \
		-r constraints-vision.txt -e '.[dev]'
	@touch $(VISION)/.installed

test-vision: $(VISION)/.installed  ## modules for images, boxes and volumes, and those of other projects
	$(VISION)/bin/python -m pytest tests/vision -m 'not chaos' $(IN_TWO)

deploy-test: $(INSTALLED)  ## the composition in real containers; needs a Docker engine
	$(PYTEST) tests/deploy -m deploy -s

docs: $(INSTALLED)  ## the documentation site, into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Read it: $(BIN)/python -m http.server --bind 127.0.0.1 --directory site"

check: $(INSTALLED) docs  ## ruff and mypy, hadolint and yamllint, and the links of the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/yamllint --strict docker-compose.yml deploy examples

bench: $(INSTALLED)  ## the benchmarks, each as a ratio against its peer in the same run
	$(BIN)/python -m benchmarks

# PART=3/12 runs every twelfth, from the third on.
PART ?= 1/1
chaos: $(INSTALLED)  ## the long forms of the fault tests
	$(PYTEST) tests -m chaos --timeout 3600 --part $(PART) --record long-forms.jsonl; \
		ended=$$?; $(BIN)/python -m tests.helpers.long_forms long-forms.jsonl; exit $$ended

clean:  ## remove the virtual environment and all embedded state
	rm -rf $(VENV) $(VISION) .syncnorm site
