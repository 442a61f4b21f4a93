"""Fetching: resumed, verified, and unpacked without trust. The server is on loopback."""

import errno
import hashlib
import io
import ssl
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcore_lib.errors import InputError
from tcore_lib.remote import archives, download as downloads
from tcore_lib.remote.archives import unpack
from tcore_lib.remote.download import Remote, download
from tcore_lib.remote.fetch import DATASETS, Part, datasets_table, fetch, fetch_archives


class Server:
    """Files over HTTP, with the ways in which servers fail."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.versions: dict[str, str] = {}
        self.breaks: list[int] = []  # the next answers stop after that many bytes of their content
        self.errors: list[int] = []  # the next answers have these statuses
        self.requests: list[str | None] = []  # Range of every request
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.requests.append(wanted)
        name = request.path.lstrip("/")
        if self.errors or name not in self.files:
            request.send_error(self.errors.pop(0) if self.errors else 404)
            return
        content, version = self.files[name], self.versions.get(name, '"1"')
        start = 0
        if wanted and request.headers.get("If-Range") == version:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                request.send_error(416)
                return
        request.send_response(206 if start else 200)
        request.send_header("ETag", version)
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        sent = content[start:]
        request.wfile.write(sent[: self.breaks.pop(0)] if self.breaks else sent)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


CONTENT = np.random.default_rng(0).bytes(300_000)


def get(server: Server, folder: Path, name: str = "a.bin", **known: object) -> Path:
    return download(Remote(f"{server.address}/{name}", **known), folder, progress=False, patience_s=0.01)


def test_broken_connections_are_continued(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT
    server.breaks = [100_000, 0, 50_000]
    path = get(server, tmp_path, bytes=300_000, checksum=f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")
    assert path.read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-", "bytes=100000-", "bytes=150000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    get(server, tmp_path)
    assert len(server.requests) == 4, "what is there is not fetched again"


def test_a_broken_tls_connection_is_tried_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ssl.SSLError is an OSError, but no fault of the disk."""
    server.files["a.bin"] = CONTENT
    receive, broken = downloads._receive, [ssl.SSLEOFError(8, "EOF occurred in violation of protocol")]

    def once_broken(*arguments: Any) -> bool:
        if broken:
            raise broken.pop()
        return receive(*arguments)

    monkeypatch.setattr(downloads, "_receive", once_broken)
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_later_call_continues(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT
    server.breaks = [200_000] + [0] * 5
    with pytest.raises(InputError, match=r"the connection broke off.*it continues"):
        get(server, tmp_path)
    assert not (tmp_path / "a.bin").exists()
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == "bytes=200000-"


def test_a_file_that_changed_meanwhile_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT
    server.breaks = [200_000] + [0] * 5
    with pytest.raises(InputError):
        get(server, tmp_path)
    server.files["a.bin"], server.versions["a.bin"] = CONTENT[::-1], '"2"'
    assert get(server, tmp_path).read_bytes() == CONTENT[::-1]


def test_a_whole_part_file_only_needs_its_name(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT
    path = get(server, tmp_path)
    path.rename(tmp_path / "a.bin.part")
    (tmp_path / "a.bin.part.json").write_text('{"version": "\\"1\\"", "bytes": 300000}')
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_what_is_not_as_expected_is_deleted(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT
    for known, problem in (
        ({"bytes": 300_001}, "300000 bytes instead of 300001"),
        ({"checksum": "sha256:" + "0" * 64}, "sha256 .* instead of 0000"),
        ({"checksum": "md5:" + "0" * 32}, "md5 .* instead of 0000"),
    ):
        with pytest.raises(InputError, match=problem):
            get(server, tmp_path, **known)
        assert not list(tmp_path.iterdir())


def test_servers_that_refuse_or_stumble(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"404 Not Found.*by hand"):
        get(server, tmp_path)
    server.files["a.bin"] = CONTENT
    server.errors = [503, 503]
    assert get(server, tmp_path).read_bytes() == CONTENT
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(InputError, match=r"cannot be fetched .*refused"):
        get(server, tmp_path, "b.bin")
    with pytest.raises(InputError, match="is not an http address"):
        download(Remote("file:///etc/passwd"), tmp_path, progress=False)


# --- archives ---


def tar_of(path: Path, members: list[tarfile.TarInfo | tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "C:/evil.txt", "..\\evil.txt"])
def test_no_path_leaves_the_target(tmp_path: Path, name: str) -> None:
    target = tmp_path / "deep/target"
    tar = tar_of(tmp_path / "a.tar.gz", [("good.txt", b"good"), (name, b"evil")])
    packed = tmp_path / "a.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("good.txt", b"good")
        archive.writestr(zipfile.ZipInfo(name), b"evil")
    for path in (tar, packed):
        with pytest.raises(InputError, match="leaves the target folder"):
            unpack(path, target)
        assert not list(target.iterdir()), "not even the good members stay"
    assert not list(tmp_path.rglob("evil*"))


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for members in (
        [link("door", str(outside)), ("door/evil.txt", b"evil")],
        [link("copy", "/etc/passwd", tarfile.LNKTYPE)],
        [link("device", "", tarfile.CHRTYPE)],
    ):
        with pytest.raises(InputError, match="no plain file"):
            unpack(tar_of(tmp_path / "a.tar.gz", members), tmp_path / "target")
    packed = tmp_path / "a.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        info = zipfile.ZipInfo("door")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, str(outside))
    with pytest.raises(InputError, match="no plain file"):
        unpack(packed, tmp_path / "target")
    (tmp_path / "target/door").symlink_to(outside)  # a link that lies there already leads nowhere either
    with pytest.raises(InputError, match="is a link"):
        unpack(tar_of(tmp_path / "b.tar.gz", [("door/evil.txt", b"evil")]), tmp_path / "target")
    assert not list(outside.iterdir())


def test_damaged_and_oversized_archives_are_refused(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar.gz", [("a.bin", CONTENT)])
    with pytest.raises(InputError, match=r"more than 0\.0002 GB"):
        unpack(path, tmp_path / "target", limit_gb=0.0002)
    path.write_bytes(path.read_bytes()[:200_000])
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(path, tmp_path / "target")
    packed = tmp_path / "a.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.bin", CONTENT)
    content = bytearray(packed.read_bytes())
    content[1000] ^= 1
    packed.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be unpacked .*CRC"):
        unpack(packed, tmp_path / "target")
    with pytest.raises(InputError, match="holds no files"):
        unpack(tar_of(tmp_path / "b.tar.gz", []), tmp_path / "target")
    assert not list((tmp_path / "target").iterdir())


def test_unpacking_leaves_out_the_top_folder_and_what_macs_add(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("TOP/a/b.txt", b"b")
        archive.writestr("TOP/c.txt", b"c")
        archive.writestr("__MACOSX/TOP/._c.txt", b"junk")
    assert unpack(path, tmp_path / "target", inner="TOP") == 2
    assert sorted(p.name for p in (tmp_path / "target").rglob("*.txt")) == ["b.txt", "c.txt"]
    assert (tmp_path / "target/a/b.txt").read_bytes() == b"b"
    assert unpack(path, tmp_path / "target", inner="TOP") == 2, "the same files again: an interrupted run"
    (tmp_path / "target/c.txt").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"c\.txt exists already"):
        unpack(path, tmp_path / "target", inner="TOP")


# --- data sets ---


def test_fetching_archives_once(server: Server, tmp_path: Path) -> None:
    tar_of(tmp_path / "x.tar.gz", [("splits/a.txt", b"a")])
    server.files["splits.tar.gz"] = (tmp_path / "x.tar.gz").read_bytes()
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        archive.writestr("DAVIS/ImageSets/val.txt", b"v")
    server.files["davis.zip"] = (tmp_path / "y.zip").read_bytes()
    parts = (
        Part(Remote(f"{server.address}/splits.tar.gz"), "splits", "splits"),
        Part(Remote(f"{server.address}/davis.zip"), "DAVIS"),
    )
    for _ in range(2):
        fetch_archives(parts, tmp_path / "root", progress=False)
    assert len(server.requests) == 2
    assert (tmp_path / "root/splits/a.txt").read_bytes() == b"a"
    assert (tmp_path / "root/ImageSets/val.txt").read_bytes() == b"v"
    assert not list((tmp_path / "root/.archives").iterdir())


def test_a_full_disk_does_not_blame_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar_of(tmp_path / "x.tar.gz", [("splits/a.txt", b"a")])

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives, "open", full, raising=False)
    with pytest.raises(InputError, match=r"target.* cannot be written \(No space left on device\); free some space"):
        unpack(tmp_path / "x.tar.gz", tmp_path / "target")


def test_a_root_that_cannot_be_written_is_one_sentence(server: Server, tmp_path: Path) -> None:
    server.files["a.zip"] = b"any"
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match=r"file/root cannot be written \(.*\); choose a folder that can be written"):
        fetch_archives((Part(Remote(f"{server.address}/a.zip")),), tmp_path / "file" / "root", progress=False)


def test_what_must_be_fetched_by_hand_says_how(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"by hand .*{tmp_path}/k400/train.*data.source"):
        fetch("kinetics400", tmp_path)
    with pytest.raises(InputError, match=r"by hand .*VIP_Fine.*vip.root"):
        fetch("vip", tmp_path)
    with pytest.raises(InputError, match="'coco' is no known data set; known are kinetics400"):
        fetch("coco", tmp_path)


def test_every_data_set_has_a_way_and_a_home() -> None:
    table = datasets_table()
    assert len(table) == len(DATASETS) == len({item.name for item in DATASETS}) == 8
    assert table.map(bool).all(axis=None)
    for item in DATASETS:
        for part in item.parts:
            algorithm, _, digest = (part.remote.checksum or "").partition(":")
            assert len(digest) == {"sha256": 64, "md5": 32}[algorithm]
            assert part.remote.url.startswith("https://")
