"""One picture of a segmentation: three planes by five slices, label outlines on the scan, what is odd below.

Planes are those of the world (mm, RAS+), so that heads stand upright whatever order and angle the voxels have. Only
what is drawn is resampled.
"""

import logging
import textwrap

import numpy as np

WIDTH, HEIGHT = 1600, 1100  # pixels
SLICES = 5
MARGIN_MM = 10  # around the labels
LEAST_MM = (140, 175, 135)  # of the window, where the scan has them: what was not labelled must show too
SMALL_MM = 80  # a field of view below this is named
WINDOW = (0.5, 99.5)  # percentiles that become black and white

# Name, axis across the planes, axis from right to left on the screen, axis from bottom to top, letters at the sides.
PLANES = (("axial", 2, 0, 1, "RL"), ("coronal", 1, 0, 2, "RL"), ("sagittal", 0, 1, 2, "AP"))
SIDES = ("left", "right")
VIEW = "radiological view: the patient's left is on the right · x, y, z grow to the patient's right, front, top"

LEFT, TOP, BOTTOM, GAP, CAPTION = 28, 68, 150, 6, 20  # pixels: row names, title, text; between, below panels
TEXT_LINES = 6
FINE, THICK = 3, 5  # outlines are found on a grid this much finer than the pixels, this wide on it, and averaged
GREYS = 100  # levels; more of them store noise
OUTSIDE = 0.09  # grey of what the scan does not cover, so that the edge of its field of view shows
ODD = "! "  # opens a line that says what is odd
TINTS = {"title": "#ffffff", "text": "#c8c8c8", "odd": "#ffc04d", "side": "#7fd4ff"}


def lines(qc, labels_table, volumes) -> list[str]:
    """The text below the picture: some volumes to go by, then what is odd.

    qc : what `quality.assess` returned · volumes : (N,) soft volumes in mm3, background first
    """
    named = dict(zip(labels_table.names, volumes, strict=True))
    parts = [f"brain {qc['brain_mm3'] / 1000:.0f} mL"]
    for name in ("lateral ventricle", "hippocampus"):
        if f"left {name}" in named:
            parts.append(
                "{} {:.1f} mL left, {:.1f} mL right".format(name, *(named[f"{s} {name}"] / 1000 for s in SIDES))
            )
    return [" · ".join(parts), *([ODD + remark for remark in qc["remarks"]] or ["nothing odd"])]


def draw(path, image, image_affine, labels, labels_affine, labels_table, *, title, lines):
    """Write a PNG of 1600 x 1100 pixels; the same input gives the same bytes.

    image (X, Y, Z) real, labels (x, y, z) whole numbers, each with its affine (4, 4); the grids may differ.
    labels_table : `model.Labels`, for the colours · title : any text · lines : see `lines`, drawn below the picture
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

    panels, scale = _panels(field if box is None else box, window)
    for panel in panels:
        panel.grey, panel.inside = _sample(image, image_affine, panel.points(scale), linear=True)
        panel.labels, _ = _sample(labels, labels_affine, panel.points(scale * FINE), linear=False)
    low, high = _grey_window(panels)
    if low == high:
        notes.append(f"the scan has the same value everywhere that is drawn: {low:g}")

    canvas = np.zeros((HEIGHT, WIDTH, 3))
    for panel in panels:
        grey = np.clip((panel.grey - low) / (high - low), 0, 1) if high > low else np.full(panel.grey.shape, 0.5)
        grey = np.where(panel.inside, np.rint(grey * GREYS) / GREYS, OUTSIDE)
        color, cover = _outlines(panel.labels, labels_table)
        canvas[panel.rows, panel.columns] = grey[..., None] * (1 - cover) + color
    subtitle = f"{VIEW} · grey from {low:.4g} to {high:.4g} · FreeSurfer's colours"
    _write(path, canvas, panels, title, subtitle, [ODD + note for note in notes] + list(lines))


# Where the slices lie --------------------------------------------------------------------------------------------


class _Panel:
    """One slice: its world axes and extents (mm), and where it goes on the canvas."""

    def __init__(self, plane, number, position, window):
        self.name, self.across, self.horizontal, self.vertical, self.letters = plane
        self.number, self.position, self.window = number, position, window

    def points(self, scale):
        """World positions (3, rows, columns) of the pixels' centres, at `scale` pixels per mm; the top row first."""
        right, top = self.window[self.horizontal, 1], self.window[self.vertical, 1]
        n_columns, n_rows = (round(n * scale / self.scale) for n in (self.n_columns, self.n_rows))
        points = np.empty((3, n_rows, n_columns))
        points[self.across] = self.position
        points[self.horizontal] = right - (np.arange(n_columns) + 0.5) / scale
        points[self.vertical] = (top - (np.arange(n_rows) + 0.5) / scale)[:, None]
        return points


def _corners(affine, shape):
    """World extent (3, 2) of the voxels of a grid, outer faces included."""
    faces = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in shape[:3]])).reshape(3, -1)
    world = affine[:3, :3] @ faces + affine[:3, 3:]
    return np.stack([world.min(axis=1), world.max(axis=1)], axis=1)


def _labelled(labels, affine):
    """World extent (3, 2) of the labelled voxels' centres, or None."""
    where = np.nonzero(labels)
    if not len(where[0]):
        return None
    extent = np.empty((3, 2))
    for row, line in zip(extent, affine[:3], strict=True):
        world = line[0] * where[0] + line[1] * where[1] + line[2] * where[2] + line[3]
        row[:] = world.min(), world.max()
    return extent


def _window(field, box):
    """World extent (3, 2) to draw: around the labels, no less than LEAST_MM, and within the scan's field of view."""
    if box is None:
        return field
    grow = np.maximum(MARGIN_MM, (LEAST_MM - np.ptp(box, axis=1)) / 2)[:, None] * [-1, 1]
    window = np.clip(box + grow, field[:, :1], field[:, 1:])
    return np.where(np.ptp(window, axis=1, keepdims=True) > 0, window, field)


def _panels(box, window):
    """The panels with their places on the canvas, and the one scale (pixels per mm) at which all of them fit."""
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
            panel.scale, panel.n_columns, panel.n_rows = scale, n_columns, n_rows
            start = LEFT + int(number * cell + (cell - GAP - n_columns) / 2)
            panel.rows, panel.columns = slice(row, row + n_rows), slice(start, start + n_columns)
            panels.append(panel)
        row += n_rows + CAPTION + int(spare)
    return panels, scale


# What they show --------------------------------------------------------------------------------------------------


def _sample(data, affine, points, *, linear):
    """Values at world points (3, rows, columns), 0 outside the grid, and where that is inside."""
    from scipy.ndimage import map_coordinates

    inverse = np.linalg.inv(affine)
    voxels = np.tensordot(inverse[:3, :3], points, axes=1) + inverse[:3, 3, None, None]
    last = np.array(data.shape)[:, None, None] - 1
    inside = np.all((voxels >= -0.5) & (voxels <= last + 0.5), axis=0)
    voxels = np.clip(voxels, 0, last)
    if linear:
        values = map_coordinates(data, voxels, output=np.float64, order=1)
    else:
        values = data[tuple(np.rint(voxels).astype(np.intp))]
    return np.where(inside, values, 0), inside


def _grey_window(panels):
    """Black and white level: percentiles of the scan where labels are, so that air and bone leave the brain its
    contrast, CT's too; of all of it without labels."""
    middle = FINE // 2
    labelled = [panel.grey[panel.labels[middle::FINE, middle::FINE] > 0] for panel in panels]
    values = np.concatenate(labelled)
    if not len(values):
        values = np.concatenate([panel.grey[panel.inside] for panel in panels])
    return np.percentile(values, WINDOW)


def _outlines(labels, labels_table):
    """Outlines of a plane on the fine grid, per pixel: colour (rows, columns, 3), weighted by its cover (.., 1)."""
    from scipy.ndimage import maximum_filter, minimum_filter

    edge = (labels > 0) & (maximum_filter(labels, THICK) != minimum_filter(labels, THICK))
    color = np.zeros((*labels.shape, 3), dtype=np.float32)
    colors = dict(zip(labels_table.index.tolist(), labels_table.colors, strict=True))
    for value in np.unique(labels[edge]).tolist():
        text = colors.get(value, "#ffffff")
        color[edge & (labels == value)] = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    rows, columns = (n // FINE for n in labels.shape)
    color = color.reshape(rows, FINE, columns, FINE, 3).mean(axis=(1, 3))
    return color, edge.reshape(rows, FINE, columns, FINE, 1).mean(axis=(1, 3))


# The page --------------------------------------------------------------------------------------------------------


def _write(path, canvas, panels, title, subtitle, lines):
    """Put the text on the canvas (HEIGHT, WIDTH, 3) and write it, without a date and without the software's name."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its font cache is nobody's business
    from matplotlib import get_data_path
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.ft2font import FT2Font
    from matplotlib.patheffects import withStroke
    from PIL import Image

    font = f"{get_data_path()}/fonts/ttf/DejaVuSansMono.ttf"
    known = FT2Font(font).get_charmap()
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor="black", layout="none")
    page = FigureCanvasAgg(figure)
    figure.figimage(canvas, origin="upper")

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
    Image.fromarray(np.asarray(page.buffer_rgba())[..., :3]).save(path, format="PNG", optimize=True)
