"""Where a project's files are: its root, its profiles, and what a relative path of a parameter file means."""

from pathlib import Path


def project_root() -> Path:
    """The checkout: the nearest folder upwards that holds `notebooks/` and `params/`; else the working folder.

    Relative paths of a parameter file are relative to it, whether a notebook runs in `notebooks/` or headless.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "params").is_dir():
            return folder
    return here


def resolve(path: str | Path) -> Path:
    """A path of a parameter file as an absolute one (`~` expanded, relative to `project_root()`)."""
    return project_root() / Path(path).expanduser()


def find_profile(profile: str | Path) -> Path:
    """`quick` -> `<project>/params/quick.yaml`; a path stays a path."""
    path = Path(profile).expanduser()
    return path if path.suffix in (".yaml", ".yml") else project_root() / "params" / f"{profile}.yaml"
