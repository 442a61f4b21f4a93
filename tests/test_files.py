"""Atomic writing from many threads at once, in a folder with leftovers of a killed process."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tcore_lib.files import write_text


def test_threads_do_not_sweep_away_each_other_s_files(tmp_path: Path) -> None:
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        dead = folder / ".old.999999999.tmp.txt"  # a process id that no system gives
        dead.write_text("half")
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda i, folder=folder: write_text(folder / f"{i}.txt", "x" * 1000), range(32)))
        assert sorted(path.name for path in folder.iterdir()) == sorted(f"{i}.txt" for i in range(32))
