"""Pictures of attention: where hidden patches of a crop look in other frames, one by one and all at once.

Frames are uint8 (H, W, 3); a grid cell is (row, column) of the (h, w) patch grid. What the released
`visualize_attention_map.py` writes as files (query, map and picture for every patch, masked crops) is drawn here.
"""

from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tcore_lib.figures import panels, style as look


@look.figure_in_style
def attention_grid(
    frame: np.ndarray,
    query: tuple[int, int],
    frames: Mapping[str, np.ndarray],
    maps: Mapping[str, np.ndarray],
    *,
    mask: np.ndarray | None = None,
    title: str = "",
) -> Figure:
    """Where one patch of the current frame looks in other frames: a row per map, the mean over heads, each head.

    Args:
        frame: the query's picture, uint8 (H, W, 3).
        query: (row, column) of its patch; outlined, and dotted at the same place of the other pictures.
        frames: `past`, `future`, ... -> the picture looked at.
        maps: name -> attention (heads, h, w), each head summing to 1. A name is a key of `frames`, or one with a comma
            and more words (`past, untrained`) for several maps on one picture.
        mask: bool (h, w): patches hidden from the encoder, covered in the query's picture.
        title: above the figure.

    Each map has its own scale, from 0 to its largest weight.
    """
    grids = {name: look.to_array(values) for name, values in maps.items()}
    heads, h, w = next(iter(grids.values())).shape
    columns = max(1, round(heads**0.5))
    figure, place = _beside_the_query(frame, query, (h, w), mask, title, rows=len(grids), columns=3)
    for i, (name, values) in enumerate(grids.items()):
        role = name.split(",")[0]
        picture, mean = frames[role], values.mean(0)
        painted = look.overlay_heat(picture, mean, limits=(0.0, mean.max()))
        small = [look.overlay_heat(picture, head, limits=(0.0, head.max())) for head in values]
        sheet = look.tile(small, columns, gap=max(2, picture.shape[1] // 40), paper=look.colour("paper"))
        texts = (name, f"mean of {heads} heads, up to {mean.max():.1%}", f"heads 1 to {heads}")
        for j, (image, text) in enumerate(zip((picture, painted, sheet), texts, strict=True)):
            ax = place(i, j)
            panels.show(ax, image, text, look.ROLE_COLOURS.get(role))
            if j < 2:
                panels.outline_cell(ax, query, (h, w), picture.shape, dotted=True)
    return figure


def _beside_the_query(
    frame: np.ndarray,
    query: tuple[int, int],
    grid: tuple[int, ...],
    mask: np.ndarray | None,
    title: str,
    *,
    rows: int,
    columns: int,
    room: float = 0.0,
) -> tuple[Figure, Callable[[int, int], Axes]]:
    """A page with the query's picture at its left, and what places axes in a row and column beside it.

    Args:
        frame: the query's picture, uint8 (H, W, 3).
        query: (row, column) of its patch.
        grid: (h, w).
        mask: bool (h, w) or None: patches covered in the query's picture.
        title: above the figure.
        rows: of pictures beside the query's.
        columns: likewise.
        room: inches left free at the right.
    """
    width = (panels.WIDTH - room - columns * panels.GAP) / (1 + columns)
    height = width * frame.shape[0] / frame.shape[1]
    top, step = 0.3 if title else 0.0, panels.LINE + height + panels.GAP
    figure = panels.page(top + rows * step)
    left = panels.place(figure, 0, top + panels.LINE + (rows - 1) * step / 2, width, height)
    shown = frame if mask is None else look.hide_patches(frame, mask)
    panels.show(left, shown, f"query: row {query[0]}, column {query[1]}", look.ROLE_COLOURS["current"])
    panels.outline_cell(left, query, grid, frame.shape)
    panels.headline(figure, title)

    def place(row: int, column: int) -> Axes:
        return panels.place(figure, (1 + column) * (width + panels.GAP), top + row * step + panels.LINE, width, height)

    return figure, place


@look.figure_in_style
def attention_compared(
    frame: np.ndarray,
    query: tuple[int, int],
    frames: Mapping[str, np.ndarray],
    states: Mapping[str, Mapping[str, np.ndarray]],
    *,
    mask: np.ndarray | None = None,
    title: str = "",
) -> Figure:
    """Where one patch looks in several states of a network, side by side, mean over heads, all on one scale.

    Args:
        frame: the query's picture, uint8 (H, W, 3).
        query: (row, column) of its patch; outlined, and dotted at the same place of the other pictures.
        frames: `past`, `future`, ... -> the picture looked at; one row each.
        states: `before training`, `after training`, ... -> {`past`: attention (heads, h, w), ...}; one column each.
        mask: bool (h, w): patches hidden from the encoder, covered in the query's picture.
        title: above the figure.
    """
    means = {state: {role: look.to_array(maps[role]).mean(0) for role in frames} for state, maps in states.items()}
    highest = max(float(mean.max()) for maps in means.values() for mean in maps.values())
    grid = next(iter(next(iter(means.values())).values())).shape
    rows, columns = len(frames), 1 + len(states)
    figure, place = _beside_the_query(frame, query, grid, mask, title, rows=rows, columns=columns, room=0.85)
    for i, (role, picture) in enumerate(frames.items()):
        named = {role: picture} | {
            f"{state}: up to {maps[role].max():.1%}": look.overlay_heat(picture, maps[role], limits=(0.0, highest))
            for state, maps in means.items()
        }
        for j, (text, image) in enumerate(named.items()):
            ax = place(i, j)
            panels.show(ax, image, text, look.ROLE_COLOURS.get(role))
            panels.outline_cell(ax, query, grid, picture.shape, dotted=True)
        panels.scale(ax, (0.0, 100 * highest), "attention, %")
    return figure


@look.figure_in_style
def attention_atlas(
    frame: np.ndarray,
    maps: Mapping[str, np.ndarray],
    mask: np.ndarray,
    *,
    title: str = "",
) -> Figure:
    """Every patch of a crop at once: at each patch's own place a small map of where it looks in another frame.

    Args:
        frame: the crop of the queries, uint8 (H, W, 3).
        maps: `past`, `future` -> attention (heads, h, w, h, w): query's row and column, then those looked at.
        mask: bool (h, w): the hidden patches; they are covered in the crop, the others' maps are drawn paler.
        title: above the figure.

    Each small map is the mean over heads, on its own scale from 0 to its largest weight, which an orange square marks; a
    white one marks the query's own place.
    """
    width = (panels.WIDTH - len(maps) * 2 * panels.GAP) / (1 + len(maps))
    height = width * frame.shape[0] / frame.shape[1]
    top = 0.3 if title else 0.0
    figure = panels.page(top + panels.LINE + height + panels.GAP)
    names = {"queries": look.hide_patches(frame, mask)}
    for role, heads in maps.items():
        names[f"{role}: each patch's map, at the patch's place"] = _atlas(look.to_array(heads).mean(0), mask)
    for j, (text, image) in enumerate(names.items()):
        ax = panels.place(figure, j * (width + 2 * panels.GAP), top + panels.LINE, width, height)
        ax.set_anchor("N")
        panels.show(ax, image, text, look.ROLE_COLOURS["current" if j == 0 else text.split(":")[0]])
    panels.headline(figure, title)
    return figure


def _atlas(mean: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Small maps (h, w, h, w) as one picture, 3 x 3 pixels per looked-at patch."""
    h, w = mask.shape
    tiles = []
    for row, column in np.ndindex(h, w):
        values = mean[row, column]
        tile = look.to_colours(values / max(values.max(), 1e-12))
        if not mask[row, column]:
            tile = np.round(0.35 * tile + 0.65 * np.array(look.to_rgb8(look.colour("paper")))).astype(np.uint8)
        tile = tile.repeat(3, 0).repeat(3, 1)
        for (y, x), colour in (
            ((row, column), "white"),
            (np.unravel_index(values.argmax(), (h, w)), look.OKABE_ITO["orange"]),
        ):
            tile[3 * y + 1, 3 * x + 1] = look.to_rgb8(colour)
        tiles.append(tile)
    return look.tile(tiles, w, gap=3, paper=look.colour("paper"))


@look.figure_in_style
def attention_matrix(maps: Mapping[str, np.ndarray], mask: np.ndarray | None = None) -> Figure:
    """All weights as matrices: a row per query, a column per patch looked at, both row by row of the grid.

    White dots mark each query's own place: where they are bright, patches look at their place and not at a thing.

    Args:
        maps: `past`, `future` -> attention (heads, h, w, h, w); the mean over heads is drawn, on one scale from 0.
        mask: bool (h, w): draw the rows of hidden patches only.
    """
    h, w = next(iter(maps.values())).shape[1:3]
    own = np.arange(h * w) if mask is None else np.flatnonzero(mask)
    means = {role: look.to_array(heads).mean(0).reshape(h * w, h * w)[own] for role, heads in maps.items()}
    highest = max(float(mean.max()) for mean in means.values())
    left, between, room = 0.6, 0.35, 0.9
    width = (panels.WIDTH - left - room - between * (len(means) - 1)) / len(means)
    first = next(iter(means.values()))
    height = min(3.6, max(1.2, width * first.shape[0] / first.shape[1]))
    figure = panels.page(panels.LINE + height + 0.55)
    for j, (role, mean) in enumerate(means.items()):
        ax = panels.place(figure, left + j * (width + between), panels.LINE, width, height)
        ax.imshow(mean, vmin=0, vmax=highest, aspect="auto", interpolation="nearest")
        ax.scatter(own, np.arange(len(own)), s=min(14.0, 2500 / len(own)), c="white", linewidths=0)
        ax.grid(visible=False)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_title(role, fontsize=9, color=look.ROLE_COLOURS.get(role, look.colour("ink")))
        ax.set_xlabel("patch looked at")
        if j == 0:
            ax.set_ylabel("query patch" if mask is None else "hidden query patch")
    panels.scale(ax, (0.0, 100 * highest), "attention, %")
    return figure
