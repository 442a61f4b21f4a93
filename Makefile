# One command per task; each sets up what it needs.
#   make reproduce   the quick profile, from rendered video to the table (minutes on two cores)
#   make test        lint + tests        make lint    ruff, nbstripout
#   make lab         JupyterLab          make bench   benchmarks into results/benchmarks/
PYTHON ?= python3
VENV ?= .venv
PROFILE ?= params/quick.yaml
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
STRIP := $(BIN)/nbstripout --keep-id --extra-keys "metadata.papermill cell.metadata.papermill"

.PHONY: reproduce test soak lint lab bench strip install

reproduce: $(READY)
	$(BIN)/python -m tcore_lib reproduce $(PROFILE)

# Two workers; tests compute with one thread each.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Kills, signals and floods of damaged files, into results/benchmarks/reliability.md. At most 15 minutes of each of four kinds of kill.
soak: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak tests/soak --numprocesses 2 --dist load

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(STRIP) --verify notebooks/*.ipynb

# Prints where to look, and nothing else; asks no server for news or extensions.
lab: $(READY)
	@$(BIN)/jupyter labextension disable --level=sys_prefix "@jupyterlab/apputils-extension:announcements" >/dev/null 2>&1
	$(BIN)/jupyter lab --ip=127.0.0.1 --log-level=WARN --LabApp.extension_manager=readonly notebooks

bench: $(READY)
	for file in $(filter-out benchmarks/gpu.py benchmarks/page.py,$(wildcard benchmarks/*.py)) benchmarks/page.py; do \
	  $(BIN)/python $$file || exit 1; done

strip: $(READY)
	$(STRIP) notebooks/*.ipynb

install: $(READY)

# uv installs in half a minute what pip needs minutes for. Compiling all modules takes 20 s once and saves as many with the
# first commands; where PYTHONDONTWRITEBYTECODE is set, 8 s with each one. The last line proves that torchvision fits torch.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; v = sys.version_info; assert (3, 11) <= v < (3, 14)" 2>/dev/null \
	  || { echo "Python 3.11 to 3.13 is needed and $(PYTHON) is $$($(PYTHON) --version 2>&1); say: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV): about 6 GB on Linux, most of it torch and its CUDA libraries; minutes, by network and disk."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -c "import torch, torchvision, timm"
	touch $(READY)
