"""Where data sets and published encoders come from, and a command that fetches what can be fetched.

Kinetics-400, ImageNet and VIP cannot be: their owners want a person to agree to terms or to click through a drive.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tcore_lib import params
from tcore_lib.errors import InputError, known_names
from tcore_lib.files import read_json, reading, sha256, writable, write_json

if TYPE_CHECKING:
    import pandas as pd

# --- what there is ----------------------------------------------------------------------------------------------------

REPOSITORY, REVISION = "yafeng19/T-CORE", "main"  # on huggingface.co; the authors name no revision and no checksums
CHECKPOINTS = {  # name -> file of the repository's folder ckpt/, what it was trained on
    "vits16_inet": ("vits16_100ep_INET.pth", "ImageNet, ViT-S/16, 100 epochs"),
    "vits16_k400": ("vits16_400ep_K400.pth", "Kinetics-400, ViT-S/16, 400 epochs"),
    "vitb16_k400": ("vitb16_200ep_K400.pth", "Kinetics-400, ViT-B/16, 200 epochs"),
}


@dataclass(frozen=True)
class Archive:
    """A file of a data set: its address, checksum (`sha256:...`), the folders it brings, and the folder they lie in there."""

    url: str
    checksum: str
    brings: tuple[str, ...]
    inner: str = ""


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        use: what it is for here.
        page: where its owners describe it.
        licence: as its owners state it, or where they state it.
        size: of the download, in words.
        layout: the folders below the root that this project reads.
        archives: what is fetched; empty = by hand.
        by_hand: what a person has to do, where nobody else can.
    """

    use: str
    page: str
    licence: str
    size: str
    layout: str
    archives: tuple[Archive, ...] = ()
    by_hand: str = ""


DATASETS = {
    "kinetics400": DataSet(
        "pretraining (K400 rows)",
        "https://github.com/cvdfoundation/kinetics-dataset",
        "annotations CC BY 4.0 (Google); the videos belong to those who uploaded them",
        "about 350 GB, 240,000 clips",
        "k400/videos/*.mp4, in class folders or not",
        by_hand="Run k400_downloader.sh of that repository, unpack its archives below <root>/k400/videos, and set data.source "
        "to that folder.",
    ),
    "imagenet1k": DataSet(
        "pretraining (ImageNet row)",
        "https://image-net.org/download",
        "non-commercial research, after agreeing to the terms there",
        "about 140 GB, 1,281,167 images",
        "imagenet/train/<wnid>/*.JPEG",
        by_hand="Log in there, fetch ILSVRC2012_img_train.tar, unpack it and the 1,000 archives inside to "
        "<root>/imagenet/train/<wnid>/, then set data.source: <root>/imagenet/train.",
    ),
    "davis2017": DataSet(
        "evaluation (DAVIS-2017 val)",
        "https://davischallenge.org",
        "stated on that page; academic research",
        "833 MB",
        "JPEGImages/480p, Annotations/480p, ImageSets/2017",
        (
            Archive(  # checksum as recorded by TensorFlow Datasets (video/davis/checksums.tsv)
                "https://data.vision.ee.ethz.ch/csergi/share/davis/DAVIS-2017-trainval-480p.zip",
                "sha256:e3d0b5b77c3d031b000a19e0e25e3e2cac65d183755601bc2cf066df1a2aa492",
                ("JPEGImages", "Annotations", "ImageSets"),
                "DAVIS",
            ),
        ),
    ),
    "jhmdb": DataSet(
        "evaluation (JHMDB, split 1)",
        "http://jhmdb.is.tue.mpg.de",
        "stated on that page; academic research",
        "some GB, 928 clips as PNG frames",
        "Rename_Images, joint_positions, splits",
        tuple(  # MD5 as recorded in a public preparation script; the owners publish none
            Archive(f"https://files.is.tue.mpg.de/jhmdb/{folder}{suffix}", f"md5:{md5}", (folder,))
            for folder, suffix, md5 in (
                ("Rename_Images", ".tar.gz", "23726fbac4bc69a726dc3daf2e7ab4c1"),
                ("joint_positions", ".zip", "3d1ac91bcb8544ddfdd9547997db239f"),
                ("splits", ".zip", "15b9f2f7a99d63c07f3be0c9ecde43b5"),
            )
        ),
    ),
    "vip": DataSet(
        "evaluation (VIP val)",
        "https://github.com/HCPLab-SYSU/ATEN",
        "stated on that page; academic research",
        "404 videos, of which the 50 of val are read",
        "Images/videosN, Annotations/Category_ids/videosN, lists/val_videos.txt",
        by_hand="Open the OneDrive or Baidu link in that README, fetch VIP_Fine, and unpack it so that <root>/Images, "
        "<root>/Annotations and <root>/lists exist, then set vip.root: <root>.",
    ),
    **{
        name: DataSet(
            f"released checkpoint ({trained})",
            f"https://huggingface.co/{REPOSITORY}",
            "stated on that page",
            "a few hundred MB",
            f"data/weights/{file}",
        )
        for name, (file, trained) in CHECKPOINTS.items()
    },
}


def datasets_table() -> "pd.DataFrame":
    """`DATASETS` as a table: name, use, page, licence, size, layout, checksum, how."""
    import pandas as pd

    rows = []
    for name, item in DATASETS.items():
        sums = ", ".join(archive.checksum for archive in item.archives) or "none known"
        how = item.by_hand or f"tcore fetch {name}"
        rows.append((name, item.use, item.page, item.licence, item.size, item.layout, sums, how))
    return pd.DataFrame(rows, columns=["name", "use", "page", "licence", "size", "layout", "checksum", "how"])


# --- fetching ---------------------------------------------------------------------------------------------------------


def fetch(name: str | None = None, root: Path = Path("data")) -> Path | None:
    """Download a data set or a published encoder, verify it and unpack it.

    What is there already is not fetched again. A broken download of an archive starts anew; one of an encoder goes on.

    Args:
        name: what to fetch; without one, what there is is listed.
        root: folder that gets the data set's own layout; encoders go to data/weights.

    Returns:
        `root`, or the encoder's file, which is printed, too.

    Raises:
        InputError: unknown name; to be fetched by hand (with what to do); the download or an archive is bad.
    """
    if name is None:
        for key, item in DATASETS.items():
            print(f"{key:12} {item.use}; {item.size}; {'by hand' if item.by_hand else 'fetched'}\n{'':13}{item.page}")
        return None
    if name not in DATASETS:
        raise InputError(f"{name!r} is no known data set; {known_names(name, DATASETS)}")
    if name in CHECKPOINTS:
        path = weights(name)
        print(path)
        return path
    item, root = DATASETS[name], Path(root)
    if item.by_hand:
        raise InputError(
            f"{name} has to be fetched by hand from {item.page}. {item.by_hand.replace('<root>', str(root))}"
        )
    for archive in item.archives:
        _fetch_archive(archive, root)
    print(root)
    return root


def _fetch_archive(archive: Archive, root: Path) -> None:
    """Download one archive and move what is inside to its place, in one step per folder; once."""
    import pooch  # late: needed for nothing else

    note = root / ".fetched.json"
    done = read_json(note) if note.exists() else {}
    if archive.url in done:
        return
    for target in (root / name for name in archive.brings):
        if target.exists():
            raise InputError(f"{target} is there already and was not fetched by this command; choose another --root.")
    by_hand = f"run the command again, or download it yourself and unpack {', '.join(archive.brings)} into {root}"
    with writable(root):
        root.mkdir(parents=True, exist_ok=True)
        with reading(archive.url, by_hand), tempfile.TemporaryDirectory(prefix=".fetching-", dir=root) as folder:
            bar = pooch.HTTPDownloader(progressbar=True, timeout=30)
            packed = pooch.retrieve(archive.url, archive.checksum, path=folder, downloader=bar)
            # A zip file has no links, and Python cuts `..` from its names; it takes no filter.
            shutil.unpack_archive(packed, f"{folder}/unpacked", filter=None if packed.endswith(".zip") else "data")
            for name in archive.brings:
                Path(folder, "unpacked", archive.inner, name).rename(root / name)
            write_json(note, {**done, archive.url: archive.checksum})


def weights_folder() -> Path:
    """Where published weights are kept."""
    return params.resolve("data/weights")


def weights(name: str) -> Path:
    """The file of a published encoder, downloaded into `weights_folder()` if it is not there.

    The SHA-256 of the first copy that is used is recorded beside it; another file of that name is refused.

    Args:
        name: a key of `CHECKPOINTS`.

    Raises:
        InputError: it cannot be downloaded, or is not the file that was recorded.
    """
    path = weights_folder() / CHECKPOINTS[name][0]
    if not path.is_file():
        from huggingface_hub import hf_hub_download

        url, partial = (
            f"https://huggingface.co/{REPOSITORY}/resolve/{REVISION}/ckpt/{path.name}",
            path.parent / ".download",
        )
        with writable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with reading(url, f"download it and put it at {path}"):
            file = f"ckpt/{path.name}"
            file = hf_hub_download(REPOSITORY, file, revision=REVISION, local_dir=partial, etag_timeout=5)
        os.replace(file, path)
    record = path.parent / "checksums.json"
    known: dict[str, str] = read_json(record) if record.is_file() else {}
    digest = sha256(path)
    if known.get(path.name, digest) != digest:
        raise InputError(
            f"{path} has SHA-256 {digest[:16]}..., not {known[path.name][:16]}... as recorded in {record}; put the recorded "
            "file back, or remove its line there if the authors replaced it."
        )
    if path.name not in known:
        write_json(record, {**known, path.name: digest})
    return path
