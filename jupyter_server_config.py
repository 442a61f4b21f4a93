"""JupyterLab on this project (`make lab`): opens at its root with the notebooks in front, and keeps outputs out of its sources.

Notebooks below notebooks/ are source: what is saved there has no outputs, so looking around changes nothing that git sees. The
browser keeps showing them; a run of its own with outputs is what `tcore reproduce` writes to results/RUN/notebooks.
"""

import json
import os
import warnings
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent


def source_only(model: dict[str, Any], path: str, contents_manager: Any, **rest: Any) -> None:
    """Take from a notebook that is about to be saved what running it added; Jupyter calls this before it writes."""
    file = Path(contents_manager.root_dir, path).resolve()
    if model["type"] != "notebook" or model["content"] is None or file.parent != PROJECT / "notebooks":
        return
    notebook = model["content"]
    for cell in notebook["cells"]:
        cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key == "tags"}
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    if file.is_file():  # the name of somebody's kernel is no change either
        saved = json.loads(file.read_text(encoding="utf-8"))
        notebook["metadata"], notebook["nbformat_minor"] = saved["metadata"], saved["nbformat_minor"]


if "get_config" in globals():  # Jupyter reads this file
    c = globals()["get_config"]()
    c.ServerApp.root_dir = str(PROJECT)
    c.ServerApp.ip = "127.0.0.1"
    c.ServerApp.allow_root = hasattr(os, "geteuid") and os.geteuid() == 0  # a container
    c.Application.log_level = "ERROR"  # where to look is printed all the same
    c.LabApp.default_url = "/lab/tree/notebooks"
    c.LabApp.extension_manager = "readonly"
    c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
    c.KernelManager.transport_encryption = "auto"  # else each kernel warns that what it is sent is not encrypted
    c.FileContentsManager.pre_save_hook = source_only
    warnings.filterwarnings("ignore", message="Overriding existing pre_save_hook")  # Jupyter applies this file twice
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # kernels: see tcore_lib/__init__.py
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
