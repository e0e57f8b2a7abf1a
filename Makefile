# make train   sets up and trains on Fashion-MNIST
# make test    sets up and runs all tests
# make study   runs the studies in runs/study, SHARDS runs at a time, updates
#              results/study with their results, and draws the pictures; rerun
#              it to resume
# make test-fast        runs the tests that take seconds, in under 3 minutes
# make benchmark        measures us and our peers, and updates
#               results/benchmarks.md and .json; BENCHMARK passes options on,
#               such as BENCHMARK='--only=step --seconds=5'
# make figures draws the pictures of README and docs from results/
# make docs    builds the pages of docs/ as a site in build/docs
# make fuzz    feeds 100,000 damaged images and shards to the readers, and other
#              examples than `make test` to the property tests; FUZZ_SEED
#              repeats what it printed
# make soak    kills a run 100 times and compares its weights
# make notebooks        runs the notebooks of colab/ in colab/runs
# make colab-check      installs and tests on the versions of Colab's runtimes
# make wheel   tries the wheel in an empty environment and an empty folder
# make lint    checks format and style

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
MODEL_DIR ?= runs/fashion_mnist
STUDIES ?= regularization fused
STUDY_DIR ?= runs/study
SHARDS ?= 2
ifndef FUZZ_SEED
FUZZ_SEED := $(shell od -An -N3 -tu4 /dev/urandom | tr -d ' ')
endif

.PHONY: setup train best study figures docs test \
	test-fast benchmark fuzz soak notebooks colab-check wheel lint

setup: $(VENV)/.installed

$(VENV)/.installed: setup.cfg setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

train: setup
	$(BIN)/python -m efficientnetv2.main --dataset=fashion_mnist \
		--model_dir=$(MODEL_DIR)

best: setup
	$(BIN)/python -m efficientnetv2.main --dataset=fashion_mnist \
		--recipe=fashion_mnist_best --model_dir=runs/fashion_mnist_best

# One process shows the bar; the others write to a log.
study: setup
	mkdir -p $(STUDY_DIR)
	trap 'kill $$others 2>/dev/null' EXIT INT TERM; \
	for study in $(STUDIES); do \
		others=; \
		command="$(BIN)/efficientnetv2 study --study=$$study"; \
		for part in $$(seq 2 $(SHARDS)); do \
			$$command --output_dir=$(STUDY_DIR) \
				> $(STUDY_DIR)/$$study.$$part.log 2>&1 & \
			others="$$others $$!"; \
		done; \
		$$command --output_dir=$(STUDY_DIR) || exit; \
		for part in $$others; do wait $$part || exit; done; \
		mkdir -p results/study/$$study; \
		cp $(STUDY_DIR)/$$study/*.json* results/study/$$study || exit; \
	done
	$(BIN)/efficientnetv2 study --only=report --output_dir=results/study
	$(MAKE) figures

figures: setup
	$(BIN)/python docs/figures.py

docs: setup
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "To read and search it: $(BIN)/python -m http.server -d build/docs"

test: setup
	$(BIN)/python -m pytest -q -n auto --dist loadfile

test-fast: setup
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not slow"

benchmark: setup
	$(BIN)/python benchmarks/run.py $(BENCHMARK)

fuzz: setup
	@echo "make fuzz FUZZ_SEED=$(FUZZ_SEED) repeats this."
	$(BIN)/python -m pytest -q --hypothesis-profile=explore \
		--hypothesis-seed=$(FUZZ_SEED) \
		$$(grep -rl "^@given" tests)
	$(BIN)/python -m tests.fuzz_readers --first_seed=$(FUZZ_SEED) \
		--json=results/fuzz.json

soak: setup
	$(BIN)/python benchmarks/soak.py --json=results/soak.json

notebooks: setup
	$(BIN)/pip install --quiet --disable-pip-version-check \
		--editable '.[export,notebooks]'
	rm -rf colab/runs
	PATH="$(CURDIR)/$(BIN):$$PATH" jupyter execute \
		colab/efficientnetv2.ipynb colab/fine_tune.ipynb

colab-check:
	bash tests/colab_check.sh $(RUNTIMES)

wheel:
	sh tests/try_wheel.sh $(PYTHON)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
