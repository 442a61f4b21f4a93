"""Fetching: verified, unpacked without trust, and what is to be done by hand. The server is on loopback."""

import gc
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tcore_lib import fetch
from tcore_lib.errors import InputError
from tcore_lib.fetch import Archive

# requests leaves the connection of a refused answer to the garbage collector (`served` calls it)
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which its files are served."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    gc.collect()  # here and not in the middle of another test, where its warning is an error


def packed(path: Path, files: dict[str, bytes]) -> str:
    """Write a .tar.gz or .zip; return its checksum as `Archive` wants it."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def offer(monkeypatch: pytest.MonkeyPatch, *archives: Archive) -> None:
    offered = fetch.datasets()["jhmdb"].model_copy(update={"archives": archives})
    monkeypatch.setattr(fetch, "datasets", lambda: {"jhmdb": offered})


def test_archives_are_fetched_once_and_leave_nothing_else(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    tar = packed(folder / "splits.tar.gz", {"splits/a.txt": b"a"})
    zipped = packed(folder / "davis.zip", {"DAVIS/ImageSets/val.txt": b"v", "DAVIS/JPEGImages/1.jpg": b"j"})
    offer(
        monkeypatch,
        Archive(url=f"{address}/splits.tar.gz", checksum=tar, brings=("splits",)),
        Archive(url=f"{address}/davis.zip", checksum=zipped, brings=("JPEGImages", "ImageSets"), inner="DAVIS"),
    )
    root = tmp_path / "root"
    assert fetch.fetch("jhmdb", root) == root
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    files.pop(".fetched.json")
    assert files == {"splits/a.txt": b"a", "ImageSets/val.txt": b"v", "JPEGImages/1.jpg": b"j"}
    for path in folder.iterdir():  # the second time nothing is asked of the server
        path.unlink()
    fetch.fetch("jhmdb", root)


@pytest.mark.parametrize("case", ["checksum", "missing", "damaged", "outside", "link", "occupied", "no folder"])
def test_a_bad_download_is_one_sentence_and_changes_nothing(
    case: str, served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    root = tmp_path / "root"
    checksum = packed(folder / "a.tar.gz", {"a/x.txt": b"x"} | ({"../evil.txt": b"e"} if case == "outside" else {}))
    words = "run the command again, or download it yourself"
    match case:
        case "checksum":
            checksum = "sha256:" + "0" * 64
        case "missing":
            (folder / "a.tar.gz").unlink()
        case "damaged":
            (folder / "a.tar.gz").write_bytes(b"no archive")
            checksum = f"sha256:{hashlib.sha256(b'no archive').hexdigest()}"
        case "link":
            with tarfile.open(folder / "a.tar.gz", "w:gz") as archive:
                entry = tarfile.TarInfo("a/link")
                entry.type, entry.linkname = tarfile.SYMTYPE, "/etc"
                archive.addfile(entry)
            checksum = f"sha256:{hashlib.sha256((folder / 'a.tar.gz').read_bytes()).hexdigest()}"
        case "occupied":
            (root / "a").mkdir(parents=True)
            (root / "a/mine.txt").write_text("mine")
            words = "is there already and was not fetched by this command"
        case "no folder":
            root = tmp_path / "file" / "root"
            (tmp_path / "file").write_text("no folder")
            words = "cannot be written"
    offer(monkeypatch, Archive(url=f"{address}/a.tar.gz", checksum=checksum, brings=("a",)))
    before = sorted(root.rglob("*"))
    with pytest.raises(InputError, match=words) as caught:
        fetch.fetch("jhmdb", root)
    assert "\n" not in str(caught.value)
    assert sorted(root.rglob("*")) == before
    assert not (tmp_path / "evil.txt").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kinetics400", "by hand .*ROOT/k400/videos.*data.source"),
        ("vip", "by hand .*VIP_Fine.*vip.root"),
        ("davis", r"'davis' is no known data set; did you mean 'davis2017'\? Known are kinetics400"),
    ],
)
def test_what_cannot_be_fetched_says_how(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words.replace("ROOT", str(tmp_path))):
        fetch.fetch(name, tmp_path)


def test_every_data_set_has_a_way_and_a_home() -> None:
    table = fetch.datasets_table()
    assert len(table) == 8
    assert table.map(bool).all(axis=None)
    for archive in (archive for item in fetch.datasets().values() for archive in item.archives):
        algorithm, _, digest = archive.checksum.partition(":")
        assert len(digest) == {"sha256": 64, "md5": 32}[algorithm]
        assert archive.url.startswith("https://")
