# make demo   X-rays to submission and table, from nothing (no data, no GPU): about 14 minutes on two cores, installation included
# make test   everything that is checked, from nothing
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

$(BIN)/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: $(BIN)/.installed
	$(BIN)/python scripts/demo.py

test: $(BIN)/.installed lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check data extract fusion

clean:
	rm -rf .venv runs/demo
