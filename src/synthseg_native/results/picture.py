"""One picture of a segmentation: three planes by five slices, label outlines on the scan, what is odd below.

Planes are those of the world (mm, RAS+), so that heads stand upright whatever order and angle the voxels have. Only
what is drawn is resampled.
"""

import logging
import textwrap
import threading
from collections.abc import Sequence
from io import BytesIO

import numpy as np

from synthseg_native.networks.cards import Labels

WIDTH, HEIGHT = 1600, 1100  # pixels
SLICES = 5
MARGIN_MM = 10  # around the labels
LEAST_MM = (140, 175, 135)  # of the window, where the scan has them: what was not labelled must show too
SMALL_MM = 80  # a field of view below this is named
WINDOW, RIM_MM = (0.5, 99.5), 3  # percentiles that become black and white; what is left out at the labels' end

# Name, axis across the planes, axis from right to left on the screen, axis from bottom to top, letters at the sides.
PLANES = (("axial", 2, 0, 1, "RL"), ("coronal", 1, 0, 2, "RL"), ("sagittal", 0, 1, 2, "AP"))
SIDES = ("left", "right")
VIEW = "radiological view: the patient's left is on the right · x, y, z grow to the patient's right, front, top"

LEFT, TOP, BOTTOM, GAP, CAPTION = 28, 68, 150, 6, 20  # pixels: row names, title, text; between, below panels
TEXT_LINES = 6
FINE, THICK = 3, 5  # outlines are found on a grid this much finer than the pixels, this wide on it, and averaged
GREYS = 64  # levels; more of them store noise
OUTSIDE = 0.09  # grey of what the scan does not cover, so that the edge of its field of view shows
ODD = "! "  # opens a line that says what is odd
_DRAWING = threading.Lock()  # matplotlib draws in one thread at a time
MADE_BY = "synthseg-native"  # keyword of the text in the file that says what drew it
TINTS = {"title": "#ffffff", "text": "#c8c8c8", "odd": "#ffc04d", "side": "#7fd4ff"}


def lines(qc: dict, labels_table: Labels, volumes: Sequence[float], scan_remarks: Sequence[str] = ()) -> list[str]:
    """The text below the picture: some volumes to go by, then what is odd.

    qc : what `quality.assess` returned · volumes : (N,) soft volumes in mm3, background first
    scan_remarks : what is odd about the scan itself, as `reading.remarks` says it
    """
    named = dict(zip(labels_table.names, volumes, strict=True))
    parts = [f"brain {qc['brain_mm3'] / 1000:.0f} mL"]
    for name in ("lateral ventricle", "hippocampus"):
        if f"left {name}" in named:
            parts.append(
                "{} {:.1f} mL left, {:.1f} mL right".format(name, *(named[f"{s} {name}"] / 1000 for s in SIDES))
            )
    odd = [*(f"the scan: {remark}" for remark in scan_remarks), *qc["remarks"]]
    return [" · ".join(parts), *([ODD + remark for remark in odd] or ["nothing odd"])]


def draw(
    image: np.ndarray,
    image_affine: np.ndarray,
    labels: np.ndarray,
    labels_affine: np.ndarray,
    labels_table: Labels,
    *,
    title: str,
    lines: list[str],
    made_by: str = "",
) -> bytes:
    """A PNG of 1600 x 1100 pixels; the same input gives the same bytes.

    image (X, Y, Z) real, labels (x, y, z) whole numbers, each with its affine (4, 4); the grids may differ.
    labels_table : `cards.Labels`, for the colours · title : any text · lines : see `lines`, drawn below the picture
    made_by : a word that says what drew it, for `made_by_of`
    An empty label map, an image of one value and a small field of view are drawn, and named.
    """
    notes = []
    field = _corners(image_affine, image.shape)
    box = _labelled(labels, labels_affine)
    if box is None:
        notes.append("no voxel has a label: there is no outline to draw")
    window = _window(field, box)
    if np.any(np.ptp(field, axis=1) < SMALL_MM):
        notes.append("small field of view: {:.0f} x {:.0f} x {:.0f} mm".format(*np.ptp(field, axis=1)))

    panels = _panels(field if box is None else box, window)
    for panel in panels:
        panel.grey, panel.inside = _sample(image, image_affine, panel.points(1), linear=True)
        fine, _ = _sample(labels, labels_affine, panel.points(FINE), linear=False)
        panel.labelled = fine[FINE // 2 :: FINE, FINE // 2 :: FINE] > 0
        panel.color, panel.cover = _outlines(fine, labels_table)
    low, high = _grey_window(panels)
    if np.isclose(low, high):
        notes.append(f"the scan has the same value everywhere that is drawn: {low:g}")

    canvas = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    for panel in panels:
        grey = np.full(panel.grey.shape, 0.5) if np.isclose(low, high) else (panel.grey - low) / (high - low)
        grey = np.where(panel.inside, np.rint(np.clip(grey, 0, 1) * GREYS) / GREYS, OUTSIDE)
        canvas[panel.rows, panel.columns] = (grey[..., None] * (1 - panel.cover) + panel.color) * 255
    subtitle = f"{VIEW} · grey from {low:.4g} to {high:.4g} · FreeSurfer's colours"
    return _png(canvas, panels, title, subtitle, [ODD + note for note in notes] + list(lines), made_by)


# Where the slices lie --------------------------------------------------------------------------------------------


class _Panel:
    """One slice: its world axes and extents (mm), and where it goes on the canvas."""

    def __init__(self, plane, number, position, window):
        self.name, self.across, self.horizontal, self.vertical, self.letters = plane
        self.number, self.position, self.window = number, position, window

    def points(self, finer):
        """World positions of pixels' centres, `finer` times as many as on the canvas along each axis: three arrays
        that broadcast to (rows, columns), the top row first."""
        step = 1 / (self.scale * finer)
        points = [self.position] * 3
        columns, rows = (finer * (part.stop - part.start) for part in (self.columns, self.rows))
        points[self.horizontal] = self.window[self.horizontal, 1] - (np.arange(columns) + 0.5) * step
        points[self.vertical] = self.window[self.vertical, 1] - (np.arange(rows)[:, None] + 0.5) * step
        return points


def _corners(affine, shape):
    """World extent (3, 2) of the voxels of a grid, outer faces included."""
    faces = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in shape[:3]])).reshape(3, -1)
    world = affine[:3, :3] @ faces + affine[:3, 3:]
    return np.stack([world.min(axis=1), world.max(axis=1)], axis=1)


def _labelled(labels, affine):
    """World extent (3, 2) of the labelled voxels' centres, or None."""
    extent = np.array([[np.inf, -np.inf]] * 3)
    for x, plane in enumerate(labels):
        y, z = np.nonzero(plane)
        if not len(y):
            continue
        for row, line in zip(extent, affine[:3], strict=True):
            world = line[0] * x + line[1] * y + line[2] * z + line[3]
            row[:] = min(row[0], world.min()), max(row[1], world.max())
    return extent if np.isfinite(extent).all() else None


def _window(field, box):
    """World extent (3, 2) to draw: around the labels, no less than LEAST_MM, and within the scan's field of view."""
    if box is None:
        return field
    grow = np.maximum(MARGIN_MM, (LEAST_MM - np.ptp(box, axis=1)) / 2)[:, None] * [-1, 1]
    window = np.clip(box + grow, field[:, :1], field[:, 1:])
    return np.where(np.ptp(window, axis=1, keepdims=True) > 0, window, field)


def _panels(box, window):
    """The panels with their places on the canvas, at the one scale (pixels per mm) at which all of them fit."""
    size = np.ptp(window, axis=1)
    cell = (WIDTH - LEFT) / SLICES
    height = HEIGHT - TOP - BOTTOM - CAPTION * len(PLANES)
    scale = min(
        (cell - GAP) / max(size[plane[2]] for plane in PLANES), height / sum(size[plane[3]] for plane in PLANES)
    )
    spare = (height - scale * sum(size[plane[3]] for plane in PLANES)) / len(PLANES)
    panels, row = [], TOP
    for plane in PLANES:
        _, across, horizontal, vertical, _ = plane
        n_columns, n_rows = (max(int(size[axis] * scale), 1) for axis in (horizontal, vertical))
        for number in range(SLICES):
            position = box[across, 0] + (number + 1) / (SLICES + 1) * np.ptp(box[across])
            panel = _Panel(plane, number, position, window)
            panel.scale = scale
            start = LEFT + int(number * cell + (cell - GAP - n_columns) / 2)
            panel.rows, panel.columns = slice(row, row + n_rows), slice(start, start + n_columns)
            panels.append(panel)
        row += n_rows + CAPTION + int(spare)
    return panels


# What they show --------------------------------------------------------------------------------------------------


def _sample(data, affine, points, *, linear):
    """Values at world points (see `_Panel.points`), 0 outside the grid, and where that is inside."""
    from scipy.ndimage import map_coordinates

    inside, voxels = True, []
    for row, n in zip(np.linalg.inv(affine)[:3], data.shape, strict=True):
        # An axis that the position does not depend on stays out: on an upright grid this is a line, not a plane.
        position = sum(part * along for part, along in zip(row[:3], points, strict=True) if part) + row[3]
        inside = inside & (position >= -0.5) & (position <= n - 0.5)
        voxels.append(np.clip(position, 0, n - 1))
    if linear:
        values = map_coordinates(data, np.broadcast_arrays(*voxels), output=np.float64, order=1)
    else:
        values = data[tuple(np.rint(position).astype(np.intp) for position in voxels)]
    inside = np.broadcast_to(inside, values.shape)
    return np.where(inside, values, 0), inside


def _grey_window(panels):
    """Black and white level: percentiles of the scan within the labels, RIM_MM from their end, so that air and bone
    leave the brain its contrast, CT's too. Without labels that thick: of all that is labelled, else of all."""
    from scipy.ndimage import minimum_filter

    labelled = [panel.labelled for panel in panels]
    deep = [minimum_filter(mask, 2 * round(RIM_MM * panels[0].scale) + 1) for mask in labelled]
    for masks in (deep, labelled, [panel.inside for panel in panels]):
        values = np.concatenate([panel.grey[mask] for panel, mask in zip(panels, masks, strict=True)])
        if len(values):
            return np.percentile(values, WINDOW)
    return 0.0, 0.0


def _outlines(labels, labels_table):
    """Outlines of a plane on the fine grid, per pixel: colour (rows, columns, 3), weighted by its cover (.., 1)."""
    edge = (labels > 0) & (_of_neighbours(np.maximum, labels) != _of_neighbours(np.minimum, labels))
    color = np.zeros((*labels.shape, 3), dtype=np.float32)
    values, which = np.unique(labels[edge], return_inverse=True)
    colors = dict(zip(labels_table.index.tolist(), labels_table.colors, strict=True))
    texts = [colors.get(value, "#ffffff") for value in values.tolist()]
    color[edge] = np.reshape([int(text[i : i + 2], 16) / 255 for text in texts for i in (1, 3, 5)], (-1, 3))[which]
    return _pooled(color), _pooled(edge[..., None].astype(np.float32))


def _of_neighbours(extreme, plane):
    """The largest or smallest value (np.maximum, np.minimum) in a square of THICK around each point of a plane."""
    for axis in (0, 1):
        lines = np.moveaxis(plane, axis, 0)
        plane = plane.copy()
        found = np.moveaxis(plane, axis, 0)
        for away in range(1, THICK // 2 + 1):
            extreme(found[away:], lines[:-away], out=found[away:])
            extreme(found[:-away], lines[away:], out=found[:-away])
    return plane


def _pooled(fine):
    """Means over the fine pixels of each pixel."""
    return sum(fine[row::FINE, column::FINE] for row in range(FINE) for column in range(FINE)) / FINE**2


# The page --------------------------------------------------------------------------------------------------------


def _png(*given):
    """See `_drawn`. In matplotlib's own settings: a matplotlibrc may lie in the home, or where one stands."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its font cache is nobody's business
    from matplotlib import rc_context, rcParamsDefault

    # Not the backend: looking for one imports pyplot, a fifth of a picture's time, and none is used.
    settings = {name: value for name, value in rcParamsDefault.items() if name != "backend"}
    with _DRAWING, rc_context(settings):
        return _drawn(*given)


def _drawn(canvas, panels, title, subtitle, lines, made_by):
    """Put the text on the canvas (HEIGHT, WIDTH, 3); as PNG, without a date and without the software's name."""
    from matplotlib import get_data_path
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.ft2font import FT2Font
    from matplotlib.patheffects import withStroke
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    font = f"{get_data_path()}/fonts/ttf/DejaVuSansMono.ttf"
    known = FT2Font(font).get_charmap()
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor="black", layout="none")
    page = FigureCanvasAgg(figure)
    background = figure.figimage(canvas, origin="upper")

    def write(x, y, text, points, tint, **options):
        text = "".join(c if c.isprintable() and ord(c) in known else "\ufffd" for c in text)
        figure.text(
            x / WIDTH, 1 - y / HEIGHT, text, color=TINTS[tint], fontproperties=FontProperties(fname=font, size=points),
            path_effects=[withStroke(linewidth=2, foreground="black")], parse_math=False, usetex=False, **options,
        )  # fmt: skip

    write(LEFT, 30, textwrap.shorten(title, 110, placeholder=" …"), 15, "title")
    write(LEFT, 54, subtitle, 10, "text")
    for panel in panels:
        top, bottom, left, right = panel.rows.start, panel.rows.stop, panel.columns.start, panel.columns.stop
        if panel.number == 0:
            write(LEFT / 2, (top + bottom) / 2, panel.name, 11, "text", rotation=90, ha="center", va="center")
        write(left + 5, top + 4, panel.letters[0], 12, "side", va="top")
        write(right - 5, top + 4, panel.letters[1], 12, "side", va="top", ha="right")
        caption = f"{'xyz'[panel.across]} {round(panel.position):+d} mm"
        write((left + right) / 2, bottom + 3, caption, 9, "text", va="top", ha="center")

    wrapped = [(part, line.startswith(ODD)) for line in lines for part in textwrap.wrap(line, 180)]
    if len(wrapped) > TEXT_LINES:
        wrapped[TEXT_LINES - 1 :] = [(f"{ODD}… and more: see the run record", True)]
    for number, (text, odd) in enumerate(wrapped):
        write(LEFT, HEIGHT - BOTTOM + 30 + 21 * number, text, 10, "odd" if odd else "text")
    page.draw()
    drawn = np.array(page.buffer_rgba())[..., :3]
    # The parts of a figure hold each other: what is large in it would stay until Python looks for such rings.
    background.remove()
    figure.clear()
    del page.renderer
    png, about = BytesIO(), PngInfo()
    about.add_text(MADE_BY, made_by or "synthseg-native")
    Image.fromarray(drawn).save(png, format="PNG", pnginfo=about)
    return png.getvalue()


END = b"\x00\x00\x00\x00IEND\xaeB`\x82"  # the last chunk of every PNG


def made_by_of(start: bytes) -> str | None:
    """The word that a picture was drawn with; None where it is none of ours. start : the file's first kilobyte."""
    _, found, rest = start.partition(f"tEXt{MADE_BY}".encode() + b"\0")
    length = int.from_bytes(start[start.find(b"tEXt") - 4 :][:4], "big") - len(MADE_BY) - 1
    return rest[:length].decode("latin-1") if found else None
