# Each target does all its own set-up in .venv.
PYTHON ?= python3
BIN := .venv/bin
# Modules are compiled when they are first imported, and not all of them while they are installed, which takes a minute.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all check docs all clean

all: check test

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev]'
	touch $@

demo: .venv/installed  ## compress the embedded ResNet-20 to 0.6 of its time
	mkdir -p out
	$(BIN)/hmc-onnx compress examples/resnet20-cifar10.onnx --output out/resnet20-cifar10-faster.onnx \
		--data examples/cifar10-sample.npz --preset cifar10 --target latency=0.6 --batch 8

test: .venv/installed
	$(BIN)/python -m pytest

test-all: .venv/installed  ## with the long tests, too: a quarter of an hour
	$(BIN)/python -m pytest -m "long or not long" --hypothesis-profile thorough

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/docs-installed: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --editable '.[docs]'
	touch $@

docs: .venv/docs-installed  ## the documentation site, in site/
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv out site build dist *.egg-info
