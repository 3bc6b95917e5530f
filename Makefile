# `make bench` and `make test` do everything from a fresh checkout: environment, installation, run.

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
EXTRAS ?= test,lint,browser
BENCH ?= --models idm patchddm checkpoint --minutes 2

.PHONY: bench test test-slow test-thorough lint lock benchmarks reference reference-quality reference-fine card clean

bench: $(VENV)/installed
	$(RUN) run_bench.py $(BENCH)

test: $(VENV)/installed
	$(RUN) -m pytest

# What `make test` leaves out to stay below five minutes.
test-slow: $(VENV)/installed
	$(RUN) -m pytest -m "slow and not thorough" --dist worksteal --durations 20

# Further cases of those, which CI leaves out to stay below twenty minutes: before a release.
test-thorough: $(VENV)/installed
	$(RUN) -m pytest -m thorough --dist worksteal

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# What CI installs, with hashes, from constraints.txt. PIP_FIND_LINKS is the folder, or the page, of
# PyTorch's CPU builds. Peers stand apart: they are installed without what they drag in.
UV = UV_CUSTOM_COMPILE_COMMAND="make lock" UV_FIND_LINKS=$(PIP_FIND_LINKS) $(VENV)/bin/uv pip \
    compile -q -c constraints.txt --generate-hashes --no-annotate --python-version 3.11
PEERS = iunets memcnn dynamic-network-architectures \
    accelerate huggingface-hub lightning lightning-utilities torchmetrics
lock: $(VENV)/installed
	$(VENV)/bin/pip install -q uv==0.13.9
	$(UV) pyproject.toml --extra test --extra lint --extra browser -o .ci/requirements.txt
	printf "%s\n" $(PEERS) | $(UV) --no-deps - -o .ci/peers.txt

# Bound and measured side by side; fails where a bound is missed. Wants an idle machine.
benchmarks: $(VENV)/installed
	$(VENV)/bin/pip install -q -c constraints.txt -e ".[$(EXTRAS),peers]"
	$(RUN) -m pytest tests/benchmarks -o addopts="-q -s" --benchmark-columns=median,rounds

# The committed results are made in build/, which git ignores: each run records whether the working
# tree was that of a commit.
MADE = build/results

# What training costs: an hour on two cores, of which the first half hour must find them idle.
ALL = --models unet checkpoint patchddm idm idm-lean idm-stored idm-fine
reference: $(VENV)/installed
	rm -rf $(MADE)/reference
	$(RUN) run_bench.py $(ALL) --preset small --minutes 1 --repeats 3 \
	    --cache-dir .cache/volumes --out $(MADE)/reference
	$(RUN) -m bench predict $(ALL) --preset paper --timeline --out $(MADE)/reference/paper
	$(RUN) -m bench predict $(ALL) --preset equal --timeline --out $(MADE)/reference/equal
	for preset in paper equal; do $(RUN) -m bench predict $(ALL) --preset $$preset --match flops \
	    --out $(MADE)/reference/$$preset-flops; done
	$(RUN) -m bench predict $(ALL) --preset full-volume --out $(MADE)/reference/full-volume
	$(RUN) -m bench scale $(ALL) --out $(MADE)/reference/scale
	for size in 8 16 24; do \
	    $(RUN) -m bench fit $(ALL) --memory $${size}GiB --out $(MADE)/reference/fit-$$size || true; \
	done
# More than 24 GiB hold hundreds of idm-lean's volumes, predicted one by one: most of an hour.
	for size in 40 80; do $(RUN) -m bench fit $(filter-out idm-lean,$(ALL)) \
	    --memory $${size}GiB --out $(MADE)/reference/fit-$$size || true; done
	$(RUN) -m bench report $(MADE)/reference/*/ --out $(MADE)/reference
	$(RUN) -m docs.keep_results $(MADE)/reference
	rm -rf results/reference && mv $(MADE)/reference results/

# The trainings of docs/quality.md, side by side, a core each.
TRAIN = $(RUN) -m bench quality --preset small --cache-dir .cache/volumes
ON_CORE = OMP_NUM_THREADS=1 taskset -c
# Parts with a report, and parts without.
define keep
	for part in $(1); do \
	    $(RUN) -m bench report $(MADE)/quality/$$part/*/ --out $(MADE)/quality/$$part; done
	$(RUN) -m docs.keep_results $(MADE)/quality
	for part in $(1) $(2); do \
	    rm -rf results/quality/$$part && mv $(MADE)/quality/$$part results/quality/; done
endef

# One function inverted, stored and lean: an hour.
SEEDS = --seeds 0 1 2 --minutes 5 --validations 5 --samples 0 --out $(MADE)/quality/seeds
STEPS = --seeds 0 1 2 --steps 500 --validations 10 --samples 0 --out $(MADE)/quality/steps
reference-quality: $(VENV)/installed
	rm -rf $(MADE)/quality
	$(ON_CORE) 0 $(TRAIN) --models idm $(SEEDS) & \
	    $(ON_CORE) 1 $(TRAIN) --models idm-stored $(SEEDS); wait
	$(ON_CORE) 0 $(TRAIN) --models idm-stored idm $(STEPS) & \
	    $(ON_CORE) 1 $(TRAIN) --models idm-lean $(STEPS); wait
	$(call keep,seeds steps)

# idm-fine beside the U-Net that computes as much, and beside every other exact network in the same
# memory; and what it draws. Three hours and a half.
FINE = $(TRAIN) --modality t1 t2
FINE_STEPS = --seeds 0 1 2 --steps 500 --validations 10 --samples 0 --out $(MADE)/quality/fine-steps
FINE_TIME = --seeds 0 1 2 --minutes 15 --validations 15 --samples 0 --out $(MADE)/quality/fine-time
FINE_MEMORY = --volume 64 --minutes 10 --validations 1 --samples 0 --out $(MADE)/quality/fine-memory
BUDGET = --minutes 5 --validations 2 --samples 0 --out $(MADE)/quality/budget
V_TARGET = --target v --minutes 15 --validations 5 --samples 4 --out $(MADE)/quality/vtarget
reference-fine: $(VENV)/installed
	rm -rf $(MADE)/quality
	$(ON_CORE) 0 $(FINE) --models idm-fine $(FINE_STEPS) & \
	    $(ON_CORE) 1 $(FINE) --models unet --match flops $(FINE_STEPS); wait
	$(ON_CORE) 0 $(FINE) --models idm-fine $(FINE_TIME) & \
	    $(ON_CORE) 1 $(FINE) --models unet --match flops $(FINE_TIME); wait
	$(RUN) -m bench sample $$(dirname $$(grep -l ^idm-fine $(MADE)/quality/fine-time/*/trained.csv)) \
	    --seeds 0 --samples 8 --batch-size 8 --out $(MADE)/quality/fine-noise
	$(ON_CORE) 0 $(FINE) --models idm-fine $(V_TARGET)
	{ $(ON_CORE) 0 $(FINE) --models idm-fine idm-stored $(FINE_MEMORY); \
	    $(ON_CORE) 0 $(FINE) --models unet --budget 2GiB $(FINE_MEMORY); } & \
	    { $(ON_CORE) 1 $(FINE) --models iunet revunet unet $(FINE_MEMORY); \
	    $(ON_CORE) 1 $(FINE) --models checkpoint --match flops $(FINE_MEMORY); }; wait
	$(ON_CORE) 0 $(FINE) $(BUDGET) \
	    --models idm-fine idm-fine-stored idm idm-stored revunet iunet patchddm & \
	    { $(ON_CORE) 1 $(FINE) --models unet unet-attention --match flops $(BUDGET); \
	    $(ON_CORE) 1 $(FINE) --models unet revunet iunet --budget 1GiB $(BUDGET); }; wait
	$(call keep,fine-steps fine-time fine-memory budget vtarget,fine-noise)

# What only a card can say: predictions beside measurements, the cost of training, how it cools. At
# most 8 minutes on an H100: each part ends in time, and leaves what it has.
CARD = $(MADE)/card
IN_TIME = -timeout -s INT -k 20
ON_CARD = --device cuda --minutes 0.2 --subjects 4 --cooldown 10 --out $(CARD)/cost
card: $(VENV)/installed
	mkdir -p $(CARD)
	$(IN_TIME) 210 $(RUN) -m bench validate --device cuda --preset equal --cooling 45 \
	    --out $(CARD)/validation
	$(IN_TIME) 210 $(RUN) run_bench.py $(ALL) --preset equal $(ON_CARD)
	$(IN_TIME) 60 $(RUN) run_bench.py --models patchddm --preset paper $(ON_CARD)
	ls -d $(CARD)/*/*

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
