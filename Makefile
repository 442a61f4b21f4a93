# One command per task; each sets up what it needs.
#   make             sets up .venv with everything, and says what to type next
#   make reproduce   the quick profile, from rendered video to the table (minutes on two cores)
#   make lab         JupyterLab          make bench   benchmarks into results/benchmarks/
#   make test        lint + tests        make lint    ruff, mypy, nbstripout
# Variables: PYTHON=python3.12 (which one), VENV=.venv (where), PROFILE=params/quick.yaml (what `reproduce` runs),
#   TORCH=cpu (wheels without CUDA, from PyTorch's own index where it can be reached: 1.5 GB instead of 6; also cu128, ...),
#   LAB_ARGS="--port=9000 --no-browser" (any options of `jupyter lab`).
PYTHON ?= python3
VENV ?= .venv
PROFILE ?= params/quick.yaml
TORCH ?=
LAB_ARGS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Where the home cannot be written to, the caches and settings of uv, matplotlib, IPython and Jupyter go into the environment.
ifeq ($(shell cache="$${XDG_CACHE_HOME:-$$HOME/.cache}"; test -w "$$HOME" && { test ! -e "$$cache" || test -w "$$cache"; } || echo no),no)
SPARE := $(if $(filter /%,$(VENV)),,$(CURDIR)/)$(VENV)/home
export XDG_CACHE_HOME ?= $(SPARE)/cache
export XDG_DATA_HOME ?= $(SPARE)/data
export MPLCONFIGDIR ?= $(SPARE)/matplotlib
export IPYTHONDIR ?= $(SPARE)/ipython
export JUPYTER_CONFIG_DIR ?= $(SPARE)/jupyter
endif
STRIP := $(BIN)/nbstripout --extra-keys "metadata.papermill cell.metadata.papermill"

.PHONY: install reproduce test soak lint lab bench strip

install: $(READY)

reproduce: $(READY)
	$(BIN)/python -m tcore_lib reproduce $(PROFILE)

# Two workers; tests compute with one thread each.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Commands killed at random moments, into results/benchmarks/reliability.md; minutes.
soak: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak tests/soak

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(STRIP) --verify notebooks/*.ipynb

# Opens at the project's root; keeps outputs out of notebooks/ (jupyter_server_config.py).
lab: $(READY)
	@$(BIN)/jupyter lab --config=jupyter_server_config.py $(LAB_ARGS)

bench: $(READY)
	for file in $(filter-out benchmarks/gpu.py benchmarks/page.py,$(wildcard benchmarks/*.py)) benchmarks/page.py; do \
	  $(BIN)/python $$file || exit 1; done

strip: $(READY)
	$(STRIP) notebooks/*.ipynb

# uv installs in half a minute what pip needs minutes for. Compiling all modules takes 20 s once and saves as many with the
# first commands; where PYTHONDONTWRITEBYTECODE is set, 8 s with each one. The fourth line proves that torchvision fits torch.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; v = sys.version_info; assert (3, 11) <= v < (3, 14)" 2>/dev/null \
	  || { echo "Python 3.11 to 3.13 is needed and $(PYTHON) is $$($(PYTHON) --version 2>&1); say: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV): on Linux about 6 GB, most of it torch's CUDA libraries (without a GPU: make TORCH=cpu, 1.5 GB)."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/python -m uv pip install --compile-bytecode --python $(BIN)/python --constraint constraints.txt \
	  $(if $(TORCH),--torch-backend=$(TORCH)) --editable ".[dev]"
	@$(BIN)/python -c "import torch, torchvision, timm"
	@$(BIN)/jupyter labextension disable --level=sys_prefix "@jupyterlab/apputils-extension:announcements" >/dev/null 2>&1 || true
	@$(BIN)/python -m ipykernel install --sys-prefix --env OMP_WAIT_POLICY PASSIVE --env GOMP_SPINCOUNT 3000 >/dev/null
	@touch $(READY)
	@echo "Ready. Next: make reproduce (minutes), or make lab. For the command itself:"
	@echo "  source $(BIN)/activate && tcore --help"
