"""Pieces of a self-contained HTML page: sections, tables, pictures, figures. Text in, escaped HTML out.

Everything that comes from outside (names of clips, settings, sentences) passes through `text`; nothing is loaded from
anywhere, which the page's own content policy enforces. Colours follow the reader's light or dark preference.
"""

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from tcore_lib.figures import style as look

STYLE = (Path(__file__).parent / "report_page.css").read_text(encoding="utf-8")
PHOTO = 340  # pixels: width of a picture of a strip
POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True)
class Section:
    """One chapter of the page: `key` is its anchor, `body` is HTML."""

    key: str
    title: str
    body: str


def text(value: Any) -> str:
    """Anything as text that is safe between tags and inside quoted attributes."""
    return html.escape(str(value), quote=True)


def paragraph(words: str, kind: str = "") -> str:
    """A paragraph; `kind` is a class of the style sheet, such as `note`."""
    return f"<p class='{text(kind)}'>{text(words)}</p>"


def facts(values: Mapping[str, Any]) -> str:
    """Names and values as a list of pairs."""
    pairs = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in values.items())
    return f"<dl class='facts'>{pairs}</dl>"


def table(frame: pd.DataFrame, digits: int = 1, *, marked: Iterable[int] = ()) -> str:
    """A table; numbers get `digits` decimals, what is missing a dash, the rows `marked` (positions) a stronger face."""
    numeric = {name for name in frame.columns if pd.api.types.is_numeric_dtype(frame[name])}
    strong = set(marked)

    def shown(name: Any, value: Any) -> str:
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return "–"
        whole = isinstance(value, (int, np.integer))
        return f"{value:,}" if whole else f"{value:,.{digits}f}" if name in numeric else text(value)

    def cell(tag: str, name: Any, content: str) -> str:
        return f"<{tag}{' class=number' if name in numeric else ''}>{content}</{tag}>"

    head = "".join(cell("th", name, text(name)) for name in frame.columns)
    lines = []
    for i, values in enumerate(frame.itertuples(index=False, name=None)):
        cells = "".join(cell("td", n, shown(n, v)) for n, v in zip(frame.columns, values, strict=True))
        lines.append(f"<tr{' class=strong' if i in strong else ''}>{cells}</tr>")
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def folded(summary: str, body: str) -> str:
    """HTML that is shown when its one-line summary is opened."""
    return f"<details><summary>{text(summary)}</summary>{body}</details>"


def figure(drawn: Figure, caption: str) -> str:
    """A matplotlib figure as a vector picture that takes on the reader's light or dark theme.

    The figure must have been drawn in the light theme, whose colours are replaced by variables of the picture.
    """
    stream = io.StringIO()
    drawn.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    picture = stream.getvalue()
    picture = picture[picture.index("<svg") :]
    names = ("paper", "ink", "muted", "rule", "panel")
    for name in names:
        picture = re.sub(look.THEMES["light"][name], f"var(--{name})", picture, flags=re.IGNORECASE)
    sets = {theme: "".join(f"--{name}:{colours[name]};" for name in names) for theme, colours in look.THEMES.items()}
    style = f"svg{{{sets['light']}}}@media (prefers-color-scheme:dark){{svg{{{sets['dark']}}}}}"
    picture = picture.replace(">", f"><style>{style}</style>", 1)
    return f"<figure><img alt='{text(caption)}' src='{_address(picture.encode(), 'svg+xml')}'></figure>"


def photo(image: np.ndarray, alt: str) -> str:
    """A picture uint8 (H, W, 3), reduced to a width of 340 pixels, as JPEG."""
    small = Image.fromarray(look.to_frame(image))
    small.thumbnail((PHOTO, 4 * PHOTO), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=82)
    return f"<img alt='{text(alt)}' src='{_address(stream.getvalue(), 'jpeg')}'>"


def strip(rows: Mapping[str, Sequence[np.ndarray]], columns: Sequence[str], title: str) -> str:
    """Pictures in rows with a name each, under column titles.

    Args:
        rows: name -> pictures uint8 (H, W, 3), one per column.
        columns: title of each column.
        title: of the whole.
    """
    head = "".join(f"<span class='column'>{text(name)}</span>" for name in ("", *columns))
    lines = []
    for name, pictures in rows.items():
        cells = (photo(picture, f"{title}, {name}, {at}") for at, picture in zip(columns, pictures, strict=True))
        lines.append(f"<span class='row'>{text(name)}</span>{''.join(cells)}")
    columns_style = f"--columns: {len(columns)}"
    return f"<h3>{text(title)}</h3><div class='strip' style='{columns_style}'>{head}{''.join(lines)}</div>"


def legend(colours: Mapping[str, Sequence[int]]) -> str:
    """What the colours (0..255) of drawn regions mean."""
    items = (
        f"<span><i style='background: rgb({red},{green},{blue})'></i>{text(name)}</span>"
        for name, (red, green, blue) in colours.items()
    )
    return f"<div class='legend'>{''.join(items)}</div>" if colours else ""


def document(title: str, subtitle: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole page.

    Args:
        title: heading and title.
        subtitle: one line below it.
        lead: HTML between the heading and the first section.
        sections: in order; each gets an entry in the navigation.
    """
    links = "".join(f"<a href='#{text(section.key)}'>{text(section.title)}</a>" for section in sections)
    chapters = "".join(
        f"<section id='{text(section.key)}'><h2>{text(section.title)}</h2>{section.body}</section>\n"
        for section in sections
    )
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        "<link rel='icon' href='data:,'>\n"
        f"<title>{text(title)}</title>\n<style>{STYLE}</style></head>\n"
        f"<body><header><h1>{text(title)}</h1><p>{text(subtitle)}</p></header>\n<nav>{links}</nav>\n<main>{lead}\n"
        f"{chapters}</main></body></html>\n"
    )


def _address(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
