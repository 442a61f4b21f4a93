"""Atomic writing from many threads at once, in a folder with leftovers of a killed process."""

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tcore_lib.errors import InputError
from tcore_lib.files import read_json, read_text, reading, write_text


def test_threads_do_not_sweep_away_each_other_s_files(tmp_path: Path) -> None:
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        dead = folder / ".7.999999999.tmp.txt"  # a process id that no system gives
        dead.write_text("half")
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda i, folder=folder: write_text(folder / f"{i}.txt", "x" * 1000), range(32)))
        assert sorted(path.name for path in folder.iterdir()) == sorted(f"{i}.txt" for i in range(32))


def test_any_failure_of_a_reader_is_one_sentence() -> None:
    for error, said in (
        (struct.error("unpack needs\n 4 bytes"), "unpack needs 4 bytes"),
        (MemoryError(), "MemoryError"),
    ):
        with pytest.raises(InputError) as caught, reading("a.jpg", "replace it"):
            raise error
        assert str(caught.value) == f"a.jpg cannot be read ({said}); replace it."
    with pytest.raises(InputError, match=r"^as it is$"), reading("a.jpg", "replace it"):
        raise InputError("as it is")


def test_a_byte_order_mark_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}
    assert read_text(path) == '{"a": 1}'
    with pytest.raises(InputError, match=r"No such file or directory\); check the path\.$"):
        read_text(tmp_path / "none.txt")


def test_written_files_can_be_read_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644
