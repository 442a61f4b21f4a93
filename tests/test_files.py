"""Reading strangers' files and writing our own: one sentence, nothing half written, nothing left."""

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, read_json, read_text, reading, write_json, write_text


def test_threads_do_not_sweep_away_each_other_s_files(tmp_path: Path) -> None:
    """... in a folder with a leftover of a killed process."""
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        dead = folder / ".7.999999999.tmp.txt"  # a process id that no system gives
        dead.write_text("half")
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda i, folder=folder: write_text(folder / f"{i}.txt", "x" * 1000), range(32)))
        assert sorted(path.name for path in folder.iterdir()) == sorted(f"{i}.txt" for i in range(32))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (struct.error("unpack needs\n 4 bytes"), "a.jpg cannot be read (unpack needs 4 bytes); replace it."),
        (MemoryError(), "a.jpg cannot be read (MemoryError); replace it."),
        (InputError("as it is"), "as it is"),
    ],
)
def test_any_failure_of_a_reader_is_one_sentence(error: Exception, message: str) -> None:
    with pytest.raises(InputError) as caught, reading("a.jpg", "replace it"):
        raise error
    assert str(caught.value) == message


def test_a_byte_order_mark_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}
    assert read_text(path) == '{"a": 1}'


def test_the_old_file_stays_when_the_writer_fails(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    write_json(target, {"old": 1})

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text('{"ne')
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(target, {"score": float("nan")})
    assert read_json(target) == {"old": 1}
    assert os.listdir(tmp_path) == ["result.json"]


def test_written_files_can_be_read_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644
