"""Where every data set and checkpoint comes from, and a step that fetches what can be fetched.

Kinetics-400, ImageNet and VIP cannot: their owners want a person to agree to terms or to click through a drive.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tcore_lib.errors import InputError
from tcore_lib.files import read_json, writable, write_json
from tcore_lib.remote.archives import unpack
from tcore_lib.remote.download import Remote, download


@dataclass(frozen=True)
class Part:
    """An archive of a data set: where from, which top folder of it to leave out, which folder of `root` it goes to."""

    remote: Remote
    inner: str = ""
    into: str = ""


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        name: what `fetch` is called with.
        use: what it is for here.
        page: where its owners describe it.
        licence: as its owners state it, or where they state it.
        size: of the download, in words.
        layout: the folders below `root` that this project reads.
        parts: the archives, where they can be fetched.
        by_hand: what a person has to do, where they cannot.
    """

    name: str
    use: str
    page: str
    licence: str
    size: str
    layout: str
    parts: tuple[Part, ...] = ()
    by_hand: str = ""


_CHECKPOINTS = {
    "vits16_inet": "ImageNet, ViT-S/16, 100 epochs",
    "vits16_k400": "Kinetics-400, ViT-S/16, 400 epochs",
    "vitb16_k400": "Kinetics-400, ViT-B/16, 200 epochs",
}

DATASETS: tuple[DataSet, ...] = (
    DataSet(
        "kinetics400",
        "pretraining (K400 rows)",
        "https://github.com/cvdfoundation/kinetics-dataset",
        "annotations CC BY 4.0 (Google); the videos belong to those who uploaded them",
        "about 350 GB, 240,000 clips",
        "k400/train/*.mp4 or part_N.tar.gz, k400/annotations/train.csv",
        by_hand="Run k400_downloader.sh of that repository (archives may stay packed), put the videos under "
        "<root>/k400/train, train.csv under <root>/k400/annotations, and set data.source and data.annotations to them.",
    ),
    DataSet(
        "imagenet1k",
        "pretraining (ImageNet row)",
        "https://image-net.org/download",
        "non-commercial research, after agreeing to the terms there",
        "about 140 GB, 1,281,167 images",
        "imagenet/train/<wnid>/*.JPEG",
        by_hand="Log in there, fetch ILSVRC2012_img_train.tar, unpack it and the 1,000 archives inside to "
        "<root>/imagenet/train/<wnid>/, then set data.source: <root>/imagenet.",
    ),
    DataSet(
        "davis2017",
        "evaluation (DAVIS-2017 val)",
        "https://davischallenge.org",
        "stated on that page; academic research",
        "833 MB",
        "JPEGImages/480p, Annotations/480p, ImageSets/2017",
        parts=(
            Part(
                Remote(  # size and checksum as recorded by TensorFlow Datasets (video/davis/checksums.tsv)
                    "https://data.vision.ee.ethz.ch/csergi/share/davis/DAVIS-2017-trainval-480p.zip",
                    832_766_765,
                    "sha256:e3d0b5b77c3d031b000a19e0e25e3e2cac65d183755601bc2cf066df1a2aa492",
                ),
                inner="DAVIS",
            ),
        ),
    ),
    DataSet(
        "jhmdb",
        "evaluation (JHMDB, split 1)",
        "http://jhmdb.is.tue.mpg.de",
        "stated on that page; academic research",
        "some GB, 928 clips as PNG frames",
        "Rename_Images, joint_positions, splits",
        parts=tuple(  # MD5 as recorded in a public preparation script; the owners publish none
            Part(Remote(f"https://files.is.tue.mpg.de/jhmdb/{file}", None, f"md5:{md5}"), folder, folder)
            for folder, file, md5 in (
                ("Rename_Images", "Rename_Images.tar.gz", "23726fbac4bc69a726dc3daf2e7ab4c1"),
                ("joint_positions", "joint_positions.zip", "3d1ac91bcb8544ddfdd9547997db239f"),
                ("splits", "splits.zip", "15b9f2f7a99d63c07f3be0c9ecde43b5"),
            )
        ),
    ),
    DataSet(
        "vip",
        "evaluation (VIP val)",
        "https://github.com/HCPLab-SYSU/ATEN",
        "stated on that page; academic research",
        "404 videos, of which the 50 of val are read",
        "Images/videosN, Annotations/Category_ids/videosN, lists/val_videos.txt",
        by_hand="Open the OneDrive or Baidu link in that README, fetch VIP_Fine, and unpack it so that <root>/Images, "
        "<root>/Annotations and <root>/lists exist, then set vip.root.",
    ),
    *(
        DataSet(
            name,
            f"released checkpoint ({trained})",
            "https://huggingface.co/yafeng19/T-CORE",
            "stated on that page",
            "a few hundred MB",
            "data/weights",
        )
        for name, trained in _CHECKPOINTS.items()
    ),
)


def datasets_table() -> pd.DataFrame:
    """`DATASETS` as a table: name, use, page, licence, size, layout, checksum, how."""
    rows = []
    for item in DATASETS:
        sums = ", ".join(remote.checksum for remote in (part.remote for part in item.parts) if remote.checksum)
        how = item.by_hand or f"python -m tcore_lib fetch {item.name}"
        rows.append((item.name, item.use, item.page, item.licence, item.size, item.layout, sums or "none known", how))
    return pd.DataFrame(rows, columns=["name", "use", "page", "licence", "size", "layout", "checksum", "how"])


def fetch(name: str, root: str | Path) -> Path:
    """Fetch a data set into `root`, or continue doing so, and unpack it.

    Args:
        name: of an entry of `DATASETS`.
        root: folder that gets the data set's layout; checkpoints go to the weights folder instead
            (`released.weights_folder`).

    Returns:
        `root`, or the checkpoint's file.

    Raises:
        InputError: unknown name; to be fetched by hand (with what to do); the download or an archive is bad.
    """
    known = {item.name: item for item in DATASETS}
    if name not in known:
        raise InputError(f"{name!r} is no known data set; known are {', '.join(known)}.")
    item, root = known[name], Path(root)
    if name in _CHECKPOINTS:
        from tcore_lib.remote import released  # the hub's client and torch are not needed for anything else here

        return released.fetch(name)
    if item.by_hand:
        raise InputError(
            f"{name} has to be fetched by hand from {item.page}. {item.by_hand.replace('<root>', str(root))}"
        )
    return fetch_archives(item.parts, root)


def fetch_archives(parts: tuple[Part, ...], root: Path, *, progress: bool = True) -> Path:
    """Download and unpack archives into `root`, each once; `.fetched.json` there says which are done.

    Args:
        parts: in this order.
        root: folder; created.
        progress: show a progress bar per file.

    Raises:
        InputError: see `download` and `unpack`; or `root` cannot be written.
    """
    note = root / ".fetched.json"
    for part in parts:
        done = read_json(note) if note.exists() else {}
        name = part.remote.name
        if name not in done:
            with writable(root):
                (root / ".archives").mkdir(parents=True, exist_ok=True)
            archive = download(part.remote, root / ".archives", progress=progress)
            files = unpack(archive, root / part.into, inner=part.inner)
            write_json(note, {**done, name: {"url": part.remote.url, "files": files, "checksum": part.remote.checksum}})
            archive.unlink()
    return root
