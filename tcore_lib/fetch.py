"""Where data sets and published encoders come from, and a command that fetches what can be fetched."""

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcore_lib.errors import InputError, known_names
from tcore_lib.files import read_json, reading, writable, write_json
from tcore_lib.params import read_yaml, resolve

if TYPE_CHECKING:
    import pandas as pd

REPOSITORY, REVISION = "yafeng19/T-CORE", "main"  # on huggingface.co; the authors name no revision and no checksums
CHECKPOINTS = {  # name -> file of the repository's folder ckpt/, what it was trained on
    "vits16_inet": ("vits16_100ep_INET.pth", "ImageNet, ViT-S/16, 100 epochs"),
    "vits16_k400": ("vits16_400ep_K400.pth", "Kinetics-400, ViT-S/16, 400 epochs"),
    "vitb16_k400": ("vitb16_200ep_K400.pth", "Kinetics-400, ViT-B/16, 200 epochs"),
}


@cache
def datasets() -> dict[str, dict[str, Any]]:
    """Everything that can be had, by name: datasets.yaml, which explains the keys, and the published encoders."""
    found: dict[str, dict[str, Any]] = read_yaml(Path(__file__).with_name("datasets.yaml"))
    page = {"page": f"https://huggingface.co/{REPOSITORY}", "licence": "stated on that page"}
    for name, (file, trained) in CHECKPOINTS.items():
        use = {"use": f"released checkpoint ({trained})", "size": "a few hundred MB", "layout": f"data/weights/{file}"}
        found[name] = use | page
    return found


def datasets_table() -> "pd.DataFrame":
    """`datasets` as a table: name, use, page, licence, size, layout, checksum, how."""
    import pandas as pd

    rows = []
    for name, item in datasets().items():
        sums = ", ".join(archive["checksum"] for archive in item.get("archives", ())) or "none known"
        shown = {key: item[key] for key in ("use", "page", "licence", "size", "layout")}
        rows.append({"name": name} | shown | {"checksum": sums, "how": item.get("by_hand", f"tcore fetch {name}")})
    return pd.DataFrame(rows)


def fetch(name: str | None = None, root: Path = Path("data")) -> Path | None:
    """Download a data set or a published encoder, verify it and unpack it.

    What is there already is not fetched again. A broken download of an archive starts anew; one of an encoder goes on.

    Args:
        name: what to fetch; without one, what there is is listed.
        root: folder that gets the data set's own layout; encoders go to data/weights.

    Returns:
        `root`, or the encoder's file, which is printed, too.
    """
    if name is None:
        for key, item in datasets().items():
            how = "by hand" if "by_hand" in item else "fetched"
            print(f"{key:12} {item['use']}; {item['size']}; {how}\n{'':13}{item['page']}")
        return None
    if name not in datasets():
        raise InputError(f"{name!r} is no known data set; {known_names(name, datasets())}")
    item = datasets()[name]
    if "by_hand" in item:
        how = item["by_hand"].replace("<root>", str(root))
        raise InputError(f"{name} has to be fetched by hand from {item['page']}. {how}")
    found = weights(name) if name in CHECKPOINTS else Path(root)
    for archive in item.get("archives", ()):
        _fetch_archive(found, **archive)
    print(found)
    return found


def _fetch_archive(root: Path, url: str, checksum: str, brings: list[str], inner: str = "") -> None:
    """Download one archive and move the folders it brings to their place, in one step per folder; once."""
    import pooch  # late: needed for nothing else

    note = root / ".fetched.json"
    done = read_json(note) if note.exists() else {}
    if url in done:
        return
    for target in (root / name for name in brings):
        if target.exists():
            raise InputError(f"{target} is there already and was not fetched by this command; choose another --root.")
    by_hand = f"run the command again, or download it yourself and unpack {', '.join(brings)} into {root}"
    with writable(root):
        root.mkdir(parents=True, exist_ok=True)
        with reading(url, by_hand), tempfile.TemporaryDirectory(prefix=".fetching-", dir=root) as folder:
            bar = pooch.HTTPDownloader(progressbar=True, timeout=30)
            packed = pooch.retrieve(url, checksum, path=folder, downloader=bar)
            # A zip file has no links, and Python cuts `..` from its names; it takes no filter.
            shutil.unpack_archive(packed, f"{folder}/unpacked", filter=None if packed.endswith(".zip") else "data")
            for name in brings:
                Path(folder, "unpacked", inner, name).rename(root / name)
            write_json(note, {**done, url: checksum})


def weights(name: str) -> Path:
    """The file of a published encoder (a key of `CHECKPOINTS`), downloaded into data/weights if it is not there."""
    path = resolve("data/weights") / CHECKPOINTS[name][0]
    if not path.is_file():
        from huggingface_hub import hf_hub_download

        file, partial = f"ckpt/{path.name}", path.parent / ".download"
        with writable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        address = f"https://huggingface.co/{REPOSITORY}/resolve/{REVISION}/{file}"
        with reading(address, f"download it and put it at {path}"):
            os.replace(hf_hub_download(REPOSITORY, file, revision=REVISION, local_dir=partial, etag_timeout=5), path)
    return path
