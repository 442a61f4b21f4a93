"""`make lab`: what a Run All and the autosave leave in notebooks/ is what was there."""

import json
import shutil
from pathlib import Path

from jupyter_server.services.contents.largefilemanager import LargeFileManager
from traitlets.config import PyFileConfigLoader

ROOT = Path(__file__).parents[1]


def test_saving_an_executed_notebook_changes_no_source(tmp_path: Path) -> None:
    project = tmp_path / "a project ü"
    (project / "notebooks").mkdir(parents=True)
    (project / "results").mkdir()
    shutil.copy(ROOT / "jupyter_server_config.py", project)
    source = project / "notebooks/00_data_prep.ipynb"
    shutil.copy(ROOT / "notebooks/00_data_prep.ipynb", source)
    before = source.read_bytes()
    config = PyFileConfigLoader("jupyter_server_config.py", str(project)).load_config()
    assert config.ServerApp.root_dir == str(project)
    manager = LargeFileManager(config=config, root_dir=str(project))

    def save(path: str) -> str:
        executed = manager.get("notebooks/00_data_prep.ipynb")["content"]
        executed["metadata"]["kernelspec"]["display_name"] = "somebody's kernel"
        for cell in executed["cells"]:
            cell["metadata"] |= {"execution": {"iopub.execute_input": "now"}, "trusted": True}
            if cell["cell_type"] == "code":
                cell["execution_count"] = 3
                cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": "seen"}]
        executed["cells"][3]["source"] += edit
        manager.save({"type": "notebook", "format": "json", "content": executed}, path)
        return (project / path).read_text(encoding="utf-8")

    edit = ""
    save("notebooks/00_data_prep.ipynb")
    assert source.read_bytes() == before
    assert "seen" in save("results/mine.ipynb")
    edit = "\nan edit"
    cells = json.loads(save("notebooks/00_data_prep.ipynb"))["cells"]
    assert cells[3]["source"][-1] == "an edit"
    assert not any(cell.get("outputs") for cell in cells)
