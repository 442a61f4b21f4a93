"""From a parameter file, or a notebook's variables, to checked `Params`: everything wrong is one sentence with a remedy."""

import difflib
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from tcore_lib.errors import InputError
from tcore_lib.params.places import find_profile, project_root
from tcore_lib.params.schema import SECTIONS, Params, Section

S = TypeVar("S", bound=Section)


class _Loader(yaml.SafeLoader):
    """Safe YAML without anchors (a few lines of aliases can stand for gigabytes) and without repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1} uses an alias (*name)")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), keys[0])
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: the key {twice!r} stands twice")
        return mapping


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a parameter file as plain sections, not yet checked against the schema.

    Raises:
        InputError: the file is missing, not YAML, empty, too large or not a mapping of sections.
    """
    path = Path(path)
    try:
        if path.stat().st_size > 1_000_000:
            raise InputError(f"{path} is larger than 1 MB, which no parameter file is; check the path.")
        loaded = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 (a subclass of SafeLoader)
    except OSError as error:
        known = ", ".join(sorted(file.stem for file in (project_root() / "params").glob("*.yaml")))
        raise InputError(f"{path} cannot be read ({error.strerror}); the profiles here are: {known}.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a valid parameter file ({reason}); correct that place.") from error
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise InputError(f"{path} holds no sections; it needs keys such as {', '.join(SECTIONS[:3])} at the top level.")
    return loaded


def parse(sections: dict[str, Any], origin: str) -> Params:
    """Check sections against the schema.

    Args:
        sections: nested plain values, as `read_yaml` returns them.
        origin: what the error message names, e.g. the file's path.

    Raises:
        InputError: one sentence about the first thing that is wrong.
    """
    return checked(Params, sections, origin)


def checked(schema: type[S], content: dict[str, Any], origin: str) -> S:
    """Check plain values against any schema made of `Section`s; see `parse`."""
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{origin}: {_sentence(error, schema)}") from None


def load(profile: str | Path, changes: Sequence[str] = ()) -> Params:
    """Read and check a parameter file, given as a path or as the name of a file in `params/`, with `changes` (`changed`)."""
    path = find_profile(profile)
    return parse(
        changed(read_yaml(path), changes), " ".join([str(path), *(f"--set {_shown(change)}" for change in changes)])
    )


def changed(sections: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Sections with single keys replaced, for the command line's `--set`.

    Args:
        sections: nested plain values; not modified.
        changes: `section.key=value`, the value as YAML, such as `pretrain.loop.max_steps=3`.

    Raises:
        InputError: a change is not of that form.
    """
    sections = deepcopy(sections)
    for change in changes:
        name, equals, text = change.partition("=")
        *above, key = name.split(".")
        if not (equals and above and all(above) and key):
            raise InputError(f"--set {change!r} is not possible; write section.key=value, such as run.seed=1.")
        place = sections
        for part in above:
            below = place.setdefault(part, {})
            if not isinstance(below, dict):
                raise InputError(f"--set {change!r} is not possible: {part} is a value ({below!r}), not a section.")
            place = below
        try:
            place[key] = yaml.load(text, _Loader)  # noqa: S506 (a subclass of SafeLoader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            shown = text if len(text) <= 80 else f"{text[:77]}..."
            raise InputError(f"--set {name}: {shown!r} is not YAML; correct the value.") from error
    return sections


def dotted(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, `section.key` -> value; lists and empty mappings stay values."""
    if not isinstance(value, dict) or not value:
        return {prefix: value} if prefix else {}
    start = f"{prefix}." if prefix else ""
    return {name: leaf for key, below in value.items() for name, leaf in dotted(below, f"{start}{key}").items()}


def from_notebook(namespace: dict[str, Any]) -> Params:
    """The parameters of a running notebook, from its global names.

    papermill puts every section of a parameter file into the notebook as a dictionary of that name. Where it put none, the
    notebook runs by hand, and the file named by its variable `profile` is read instead. A dictionary that is no section is
    a misspelt section: papermill itself would only warn of it.

    Raises:
        InputError: a section or a key is wrong.
    """
    given = {name: value for name, value in namespace.items() if name in SECTIONS and value is not None}
    for name, value in namespace.items():
        if isinstance(value, dict) and name not in SECTIONS and name != "Out" and not name.startswith("_"):
            raise InputError(f"The parameter {name!r} is no section of a parameter file{_meant(name, SECTIONS)}")
    if given:
        return parse(given, "the notebook's parameters")
    return load(namespace.get("profile") or "quick")


def _meant(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}."


def _keys_at(schema: type[Section], path: tuple[int | str, ...]) -> list[str]:
    """The keys a schema knows at a place. The name of an item of a mapping, or its number in a list, is one step of it."""
    here: Any = schema
    for part in path:
        if hasattr(here, "model_fields"):
            here = here.model_fields[str(part)].annotation
        else:  # dict[..., item] or list[item]
            here = get_args(here)[-1]
    return list(here.model_fields)


def _shown(key: str) -> str:
    """A key of somebody's file in a sentence: on one line, not too long."""
    plain = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in key)
    return plain if len(plain) <= 80 else f"{plain[:77]}..."


def _sentence(error: ValidationError, schema: type[Section]) -> str:
    """The first error of a pydantic report as one sentence with key, value and remedy.

    Unknown keys come first: they are often the cause of what else is wrong.
    """
    report = error.errors(include_url=False)
    first = next((item for item in report if item["type"] == "extra_forbidden"), report[0])
    key = ".".join(_shown(str(part)) for part in first["loc"]) or "the file"
    value = repr(first["input"])
    value = value if len(value) <= 80 else value[:77] + "..."
    if first["type"] == "extra_forbidden":
        known = _keys_at(schema, first["loc"][:-1])
        return f"the key {key} (value {value}) does not exist{_meant(str(first['loc'][-1]), known)}"
    if first["type"] == "float_type" and isinstance(first["input"], str):
        return f"{key} is the text {value}, not a number; YAML wants a dot and a sign, like 1.0e-4."
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
    return f"{key} = {value} is not possible: {message}."
