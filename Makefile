# `make bench` and `make test` do all from a fresh checkout: environment, installation, run.

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
EXTRAS ?= test,lint,browser
BENCH ?= --models idm patchddm checkpoint --minutes 2

.PHONY: bench test test-slow lint benchmarks reference clean

bench: $(VENV)/installed
	$(RUN) run_bench.py $(BENCH)

test: $(VENV)/installed
	$(RUN) -m pytest

# What `make test` leaves out to stay below five minutes.
test-slow: $(VENV)/installed
	$(RUN) -m pytest -m slow

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Bound and measured side by side; fails where a bound is missed. Wants an idle machine.
benchmarks: $(VENV)/installed
	$(VENV)/bin/pip install -q -c constraints.txt -e ".[$(EXTRAS),peers]"
	$(RUN) -m pytest tests/benchmarks -o addopts="-q -s" --benchmark-columns=median,rounds

# The committed reference results, about an hour and a half on two idle cores.
REFERENCE = results/reference
reference: $(VENV)/installed
	rm -rf $(REFERENCE)
	$(RUN) run_bench.py --preset small --minutes 2 --repeats 3 --out $(REFERENCE) \
	    --models unet checkpoint patchddm idm idm-lean idm-stored
	$(RUN) -m bench predict --preset paper --timeline --out $(REFERENCE)/paper
	$(RUN) -m bench predict --preset equal --timeline --out $(REFERENCE)/equal
	$(RUN) -m bench predict --preset full-volume --out $(REFERENCE)/full-volume
	$(RUN) -m bench scale --out $(REFERENCE)/scale
	for size in 8 16 24 40 80; do \
	    $(RUN) -m bench fit --memory $${size}GiB --out $(REFERENCE)/fit-$$size || true; done
	$(RUN) -m bench report $(REFERENCE)/*/ --out $(REFERENCE)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
