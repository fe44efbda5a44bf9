# Set-up and checks. Each target first creates .venv and installs the package there, where that is not done yet:
#   make demo | test | lint | install | cuda-check | clean
# Variables: PYTHON (3.11 or 3.12; found by itself), VENV (.venv), EXTRAS (pip extras of pyproject.toml), TORCH_INDEX.
# With a sourced ROS 2 (Jazzy, Kilted) that one is used; without, ROS 2 comes from pip wheels.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
EXTRAS ?= tiny,test,dev
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq

# The first interpreter that runs and is 3.11 or 3.12; a sourced ROS 2 brings its own, python3.
USES_SOURCED_ROS := $(if $(ROS_DISTRO),$(shell python3 -c 'import rclpy' 2>/dev/null && echo yes))
PYTHON ?= $(shell for p in $(if $(USES_SOURCED_ROS),python3,python3.11 python3.12 python3); do \
  "$$p" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo "$$p" && break; \
  done)

# launch and ros2 look for packages in the environment too; without the wheels, so does the dynamic linker.
export AMENT_PREFIX_PATH := $(abspath $(VENV))$(if $(AMENT_PREFIX_PATH),:$(AMENT_PREFIX_PATH))
ifdef USES_SOURCED_ROS
export LD_LIBRARY_PATH := $(abspath $(VENV))/lib$(if $(LD_LIBRARY_PATH),:$(LD_LIBRARY_PATH))
endif

# Without an NVIDIA driver, torch's own index has a build without several GB of CUDA libraries (empty = do not ask it).
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi),,https://download.pytorch.org/whl/cpu)

# What an installation is made of. Tests, documents and benchmarks run from the checkout.
SOURCES := setup.py pyproject.toml CMakeLists.txt package.xml \
  $(shell find panoptic_mapper cuda msg srv cmake config launch scripts -type f -not -name '*.pyc')

.PHONY: help demo test lint install cuda-check clean

help:
	@sed -n '/^#/!q; s/^# \?//p' Makefile

# The PATH as in an activated environment: ninja compiles the kernels of a changed checkout.
demo: install
	PATH="$(abspath $(BIN)):$$PATH" panoptic-mapper demo --out out/demo

test: install
	PATH="$(abspath $(BIN)):$$PATH" python -m pytest $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

cuda-check: install
	scripts/cuda_check.sh $(BIN)/python

install: $(VENV)/.installed

$(VENV)/.python:
	@[ -n "$(PYTHON)" ] || { echo "No Python 3.11 or 3.12 found. Install one, or say where it is: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@[ -n "$(USES_SOURCED_ROS)" ] || [ "$$(uname -sm)" = "Linux x86_64" ] || \
	  { echo "ROS 2 wheels exist for Linux x86_64 only: install ROS 2, source its setup.bash and run make again." >&2; exit 1; }
	@scripts/install_system_packages.sh "$(PYTHON)"
	"$(PYTHON)" -m venv $(if $(USES_SOURCED_ROS),--system-site-packages) $(VENV)
	@$(PIP_INSTALL) --upgrade pip
	@touch $@

$(VENV)/.requirements: $(VENV)/.python requirements/build.txt requirements/ros.txt requirements/constraints.txt
	@echo "Installing torch and $(if $(USES_SOURCED_ROS),what $(ROS_DISTRO) lacks,ROS 2); minutes, with a download, the first time"
	@$(PIP_INSTALL) -c requirements/constraints.txt $(addprefix --retries 0 --extra-index-url ,$(TORCH_INDEX)) torch
	@$(PIP_INSTALL) -c requirements/constraints.txt -r requirements/build.txt \
	  $(if $(USES_SOURCED_ROS),,-r requirements/ros.txt)
	@touch $@

# Without isolation: messages and kernels are built against this environment's ROS and torch.
$(VENV)/.installed: $(VENV)/.requirements $(SOURCES)
	@echo "Building and installing panoptic_mapper into $(VENV)"
	@PANOPTIC_MAPPER_INTERFACES=on PANOPTIC_MAPPER_KERNELS=on \
	  $(PIP_INSTALL) --no-build-isolation -c requirements/constraints.txt '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf $(VENV) build install log out panoptic_mapper.egg-info
