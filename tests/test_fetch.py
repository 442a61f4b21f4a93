"""Fetching: verified, unpacked without trust, and what is to be done by hand. No network: a folder stands for the server."""

import hashlib
import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pooch
import pytest

from tcore_lib import fetch
from tcore_lib.errors import InputError


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that downloads come from, instead of the address's."""
    folder = tmp_path / "served"
    folder.mkdir()

    def downloader(**_: object) -> Callable[[str, str, object], None]:
        return lambda url, output, _: shutil.copyfile(folder / url.rpartition("/")[2], output)

    monkeypatch.setattr(pooch, "HTTPDownloader", downloader)
    return folder


def tar_gz(path: Path, files: dict[str, bytes], link: str = "") -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        if link:
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc"
            archive.addfile(entry)


def offer(monkeypatch: pytest.MonkeyPatch, *files: tuple[Path, tuple[str, ...], str], checksum: str = "") -> None:
    """Let `jhmdb` consist of archives: file, folders it brings, where they lie in it."""
    archives = [
        {"url": f"https://x/{path.name}", "brings": brings, "inner": inner,
         "checksum": checksum or f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"}
        for path, brings, inner in files
    ]  # fmt: skip
    offered = fetch.datasets()["jhmdb"] | {"archives": archives}
    monkeypatch.setattr(fetch, "datasets", lambda: {"jhmdb": offered})


def test_archives_are_fetched_once_and_leave_nothing_else(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar_gz(served / "splits.tar.gz", {"splits/a.txt": b"a"})
    with zipfile.ZipFile(served / "davis.zip", "w") as archive:
        archive.writestr("DAVIS/ImageSets/val.txt", b"v")
        archive.writestr("DAVIS/JPEGImages/1.jpg", b"j")
    davis = (served / "davis.zip", ("JPEGImages", "ImageSets"), "DAVIS")
    offer(monkeypatch, (served / "splits.tar.gz", ("splits",), ""), davis)
    root = tmp_path / "root"
    assert fetch.fetch("jhmdb", root) == root
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    files.pop(".fetched.json")
    assert files == {"splits/a.txt": b"a", "ImageSets/val.txt": b"v", "JPEGImages/1.jpg": b"j"}
    shutil.rmtree(served)  # the second time nothing is asked of the server
    fetch.fetch("jhmdb", root)


@pytest.mark.parametrize("case", ["checksum", "outside", "link", "occupied"])
def test_a_bad_download_is_one_sentence_and_changes_nothing(
    case: str, served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, path = tmp_path / "root", served / "a.tar.gz"
    words = "run the command again, or download it yourself"
    evil = {"../evil.txt": b"e"} if case == "outside" else {}
    tar_gz(path, {"a/x.txt": b"x"} | evil, link="a/link" if case == "link" else "")
    if case == "occupied":
        (root / "a").mkdir(parents=True)
        (root / "a/mine.txt").write_text("mine")
        words = "is there already and was not fetched by this command"
    offer(monkeypatch, (path, ("a",), ""), checksum="sha256:" + "0" * 64 if case == "checksum" else "")
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
    for archive in (archive for item in fetch.datasets().values() for archive in item.get("archives", ())):
        algorithm, _, digest = archive["checksum"].partition(":")
        assert len(digest) == {"sha256": 64, "md5": 32}[algorithm]
        assert archive["url"].startswith("https://")
