# make study   the main job, from nothing to a report      make test   all tests
# make bench   the benchmark suite with its peers          make clean  forget what was built
#
# PYTHON=python3.12 chooses the interpreter. ORACLE= leaves PyTorch and JAX out of `make test`: the
# tests that compare against them then skip. JOBS is how many files of tests run at a time. ARGS goes
# to the command; `make study` gives it to the study of losses, and RATES to the table of rates.

PYTHON ?= python3
VENV ?= .venv
ORACLE ?= oracle
JOBS ?= 2
TEST_EXTRAS ?= study,test$(if $(ORACLE),$(comma)$(ORACLE))
BIN = $(VENV)/bin

comma = ,
# Tests also run the kernels of CUDA, on the processor.
EMULATION = OFF
configured = --config-settings=cmake.define.NFD_FAST_CUDA_EMULATION=$(EMULATION)
sources := $(shell find csrc src -type f -not -name '*.pyc') CMakeLists.txt pyproject.toml
stamp = $(VENV)/installed-$(subst $(comma),-,$(1))

.PHONY: study test bench clean

study: EXTRAS = study
study: $(call stamp,study)
	$(BIN)/nfd-fast study $(ARGS)
	$(BIN)/nfd-fast rates $(RATES)

test: EXTRAS = $(TEST_EXTRAS)
test: EMULATION = ON
test: $(call stamp,$(TEST_EXTRAS))
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

bench: EXTRAS = bench
bench: $(call stamp,bench)
	$(BIN)/nfd-fast bench --suite benchmarks $(ARGS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-%: $(sources) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-compile $(configured) ".[$(EXTRAS)]"
	@# By all processors; pip takes one. What packages keep for other versions of Python fails.
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true
	touch $@

clean:
	rm -rf $(VENV) build dist
