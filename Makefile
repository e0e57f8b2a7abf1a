# make train   sets up and trains on Fashion-MNIST
# make test    sets up and runs all tests
# make lint    checks format and style

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
MODEL_DIR ?= runs/fashion_mnist

.PHONY: setup train best test lint

setup: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

train: setup
	$(BIN)/python -m efficientnetv2.main --dataset=fashion_mnist \
		--model_dir=$(MODEL_DIR)

best: setup
	$(BIN)/python -m efficientnetv2.main --dataset=fashion_mnist \
		--recipe=fashion_mnist_best --model_dir=runs/fashion_mnist_best

test: setup
	$(BIN)/python -m pytest -q

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
