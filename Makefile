# agentwatch is built, checked and tested from here; `make help` lists the verbs.
# PYTHON is the distribution's: a private build cannot see python3-bpfcc, which comes from Debian.
PYTHON := /usr/bin/python3
BIN    := .venv/bin
OBJECT := agentwatch/data/agentwatch.bpf.o
SUDO   := $(if $(filter 0,$(shell id -u)),,sudo)

# Given to every pytest: `make test PYTEST="-x -k open"`.
PYTEST ?=
pytest  = $(BIN)/pytest $(PYTEST)
# The tests that need root run in a mount namespace of their own with tracefs, securityfs and bpffs.
as_root = $(SUDO) tests/with-kernel-mounts
rooted  = $(as_root) $(pytest) -p no:cacheprovider
guests  = vm or lsm or without_lsm or bcc or service

BPF_SOURCES := $(wildcard bpf/*.c bpf/*.h)
SCRIPTS     := .ci/run demo/run demo/claude packaging/apt/install packaging/apt/unpack \
               packaging/apt/source packaging/deb/build packaging/deb/postinst packaging/deb/prerm \
               packaging/deb/postrm tests/completeness/work.sh tests/completeness/ways.sh \
               tests/completeness/pip.sh tests/completeness/npm.sh tests/packs/inside.sh \
               tests/with-kernel-mounts tests/vm/boot tests/vm/guest tests/vm/guest-systemd \
               tests/vm/init tests/vm/kernel tests/vm/packages
BPF_FLAGS   := -O2 -g -target bpf -mcpu=v3 -D__TARGET_ARCH_x86 -Wall -Werror \
               -Ibpf -I/usr/include/$(shell uname -m)-linux-gnu

.DEFAULT_GOAL := build
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory --no-builtin-rules

##: build: everything `agentwatch` takes, leaving .venv/bin/agentwatch (the default)
build: packages $(BIN)/.installed $(OBJECT)
.PHONY: build

packages:
	@packaging/apt/install build
test-packages:
	@packaging/apt/install build test
.PHONY: packages test-packages

$(BIN)/.installed: pyproject.toml setup.py | packages
	@echo "installing into .venv: agentwatch and what it imports"
	@test -x $(BIN)/python || $(PYTHON) -m venv --system-site-packages .venv
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

# Built once and stripped: CO-RE fits it to the running kernel when it is loaded.
$(OBJECT): $(BPF_SOURCES) | packages
	@mkdir -p $(@D) .cache
	clang $(BPF_FLAGS) -c bpf/agentwatch.bpf.c -o .cache/agentwatch.bpf.o
	@llvm-strip -g .cache/agentwatch.bpf.o -o $@

##: check: ruff, mypy, clang-format, shellcheck, the import ladder; every program loads on this kernel (root)
check: build test-packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	clang-format --dry-run -Werror $(BPF_SOURCES) tests/kernel/asking.bpf.c
	shellcheck --severity=warning $(SCRIPTS)
	$(pytest) -q tests/unit/test_imports.py
	$(as_root) $(BIN)/agentwatch doctor --programs
.PHONY: check

##: format: lay out the sources as `check` wants them
format: build test-packages
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	clang-format -i $(BPF_SOURCES) tests/kernel/asking.bpf.c
.PHONY: format

##: test: everything below, one tier after the other, with a summary (TIERS="unit rules" for some)
TIERS ?= check unit abi rules root completeness vm
test: build test-packages
	@$(PYTHON) tests/tiers.py $(TIERS)
.PHONY: test

##: test-unit: tests without root, compiler or kernel; under a minute
test-unit: build
	$(pytest) -m "not (root or completeness or $(guests))" tests/unit

##: test-abi: the Python mirror against the C contract
test-abi: build
	$(pytest) tests/abi

##: test-rules: the rule language, and the packs that ship with the tests inside them
test-rules: build
	$(pytest) -m "not (root or completeness or $(guests))" tests/rules tests/packs
	$(BIN)/agentwatch rules test rules

##: test-root: real probes on this kernel, and the demonstration
test-root: build test-packages
	$(rooted) -m "root and not (completeness or $(guests))" tests

##: test-completeness: agentwatch and strace watch the same build and installs, and must agree
test-completeness: build test-packages
	$(rooted) -m completeness tests
.PHONY: test-unit test-abi test-rules test-root test-completeness

##: vm: boot Debian's own kernels, load every program, run the tests that need a kernel with BPF LSM
##:     KERNEL=6.12 for one, with PREEMPT=full, LSM=list or INIT=systemd; TEST=part of a test's name; KVM=1
vm: build test-packages
	@$(PYTHON) -m tests.vm.boots $(PYTEST) $(if $(TEST),-k "$(TEST)")
.PHONY: vm

##: levels: the table of docs/levels.md, from a boot of each kernel and from this one (root)
levels: build test-packages
	@$(SUDO) $(BIN)/python tests/vm/levels.py
.PHONY: levels

##: demo: an agent at work, live, and what happens when it breaks a rule (root)
demo: build
	@$(SUDO) demo/run
.PHONY: demo

##: bench: the numbers of docs/ (root; an idle machine)
bench: build test-packages
	@$(SUDO) $(BIN)/python -m bench
.PHONY: bench

##: wheel: dist/agentwatch-*.whl with the compiled probes and the rule packs inside
wheel: build
	@rm -rf build dist
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@$(PYTHON) -m zipfile -l dist/*.whl > build/contents
	@grep -q '^agentwatch/data/agentwatch\.bpf\.o ' build/contents
	@grep -q '^agentwatch/data/bpf/bcc\.c ' build/contents
	@grep -q '^agentwatch/data/rules/.*\.yaml ' build/contents
	@ls dist/*.whl
.PHONY: wheel

##: man: build/man, the manual pages, from the texts of --help
man: build
	@$(BIN)/python packaging/man build/man $$(git log -1 --format=%ct) $$($(BIN)/agentwatch version | cut -d' ' -f2)
.PHONY: man

##: deb: dist/agentwatch_*_amd64.deb for Debian 12; the same sources give the same bytes
deb: build
	@packaging/deb/build $(VERSION)
.PHONY: deb

##: clean: remove what was built, .venv and the downloads in .cache included
clean:
	rm -rf .venv .cache build dist *.egg-info $(OBJECT) .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
.PHONY: clean

help:
	@sed -n 's/^##: //p' $(MAKEFILE_LIST)
.PHONY: help
