"""`make lab`: what a Run All and the autosave leave in notebooks/ is what was there."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def test_saving_an_executed_notebook_changes_no_source(tmp_path: Path) -> None:
    project = tmp_path / "a project ü"
    (project / "notebooks").mkdir(parents=True)
    (project / "results").mkdir()
    shutil.copy(ROOT / "jupyter_server_config.py", project)
    source = project / "notebooks/00_data_prep.ipynb"
    shutil.copy(ROOT / "notebooks/00_data_prep.ipynb", source)
    before = source.read_bytes()
    executed = json.loads(before)
    executed["metadata"]["kernelspec"]["display_name"] = "somebody's kernel"
    for cell in executed["cells"]:
        cell["metadata"]["execution"] = {"iopub.execute_input": "now"}
        if cell["cell_type"] == "code":
            cell["execution_count"] = 3
            cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": "seen"}]
    options = ["--config=jupyter_server_config.py", "--no-browser", "--port=0"]
    environment = os.environ | {"JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime")}
    log = tmp_path / "lab.log"
    with open(log, "w") as stream:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, cwd=project, env=environment, stdout=stream, stderr=stream)
    try:
        end, found = time.monotonic() + 150, None
        while found is None and time.monotonic() < end:
            time.sleep(0.3)
            found = re.search(r"(http://127\.0\.0\.1:\d+)/lab/tree/notebooks\?(token=\w+)", log.read_text())
        assert found is not None, log.read_text()
        assert len(log.read_text().splitlines()) < 10, "only where to look is printed"

        def save(path: str, content: dict[str, Any]) -> None:
            body = json.dumps({"type": "notebook", "format": "json", "content": content}).encode()
            url = f"{found[1]}/api/contents/{path}?{found[2]}"
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="PUT")
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
                assert answer.status in (200, 201)

        save("notebooks/00_data_prep.ipynb", executed)
        assert source.read_bytes() == before
        save("results/mine.ipynb", executed)
        assert "seen" in (project / "results/mine.ipynb").read_text()
        executed["cells"][2]["source"] = "an edit"
        save("notebooks/00_data_prep.ipynb", executed)
        assert json.loads(source.read_text())["cells"][2]["source"] == ["an edit"]
    finally:
        server.terminate()
        server.wait(timeout=30)
