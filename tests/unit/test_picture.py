"""The picture: where left is, what the outlines enclose, what is said in odd cases. Mostly at half the size."""

import gc
import runpy
import subprocess
import sys
import tracemalloc
import warnings

import matplotlib
import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy import ndimage
from scipy.ndimage import affine_transform

from synthseg_native.files import write_sealed
from synthseg_native.networks import cards
from synthseg_native.results import picture

VOXEL_MM = 2.0
HIPPOCAMPUS = 17  # drawn in yellow


@pytest.fixture(scope="module")
def table(root):
    return cards.read_labels(root / "models/synthseg2/labels.tsv")


@pytest.fixture
def half_size(monkeypatch):
    monkeypatch.setattr(picture, "WIDTH", 800)
    monkeypatch.setattr(picture, "HEIGHT", 550)


@pytest.fixture
def texts(monkeypatch):
    """(text, x, y) of all that is written, in pixels."""
    from matplotlib.figure import Figure

    written, original = [], Figure.text

    def text(figure, x, y, words, **options):
        written.append((words, x * picture.WIDTH, (1 - y) * picture.HEIGHT))
        return original(figure, x, y, words, **options)

    monkeypatch.setattr(Figure, "text", text)
    return written


def head(shift=0):
    """A head of 140 x 180 x 140 mm, RAS: bright on the patient's left, with a box of label 17 there, `shift` mm high.

    Returns image, labels, affine; the middle of the head is at world 5, -10, 20.
    """
    shape = (81, 101, 81)
    affine = np.diag([VOXEL_MM, VOXEL_MM, VOXEL_MM, 1])
    affine[:3, 3] = np.array([5, -10, 20]) - VOXEL_MM * (np.array(shape) - 1) / 2
    x, y, z = (affine[i, i] * n + affine[i, 3] for i, n in enumerate(np.indices(shape)))
    inside = ((x - 5) / 70) ** 2 + ((y + 10) / 90) ** 2 + ((z - 20) / 70) ** 2 < 1
    image = np.where(inside, np.where(x < 5, 200.0, 100.0), 0)
    labels = np.where(inside, np.where(x < 5, 2, 41), 0).astype(np.int32)
    box = (abs(x + 25) < 15) & (abs(y + 10) < 20) & (abs(z - 20 - shift) < 10)
    labels[box] = HIPPOCAMPUS
    return image, labels, affine


def drawn(path, table, image, labels, affine, lines=(), title="sub-01", labels_affine=None):
    labels_affine = affine if labels_affine is None else labels_affine
    path.write_bytes(picture.draw(image, affine, labels, labels_affine, table, title=title, lines=list(lines)))
    return np.asarray(Image.open(path)).astype(int)


def cell(page, row, column):
    """Left and right half of one panel's surroundings."""
    step = (picture.WIDTH - picture.LEFT) // picture.SLICES
    height = (picture.HEIGHT - picture.TOP - picture.BOTTOM) // 3
    part = page[picture.TOP + row * height :, picture.LEFT + column * step :][:height, :step]
    return part[:, : step // 2], part[:, step // 2 :]


def near(page, color, tolerance=40):
    return np.abs(page - color).max(axis=-1) <= tolerance


def yellow(page):
    """Pixels of the outline, blended with grey or with the white of its neighbour."""
    return page[..., :2].min(axis=-1) - page[..., 2] > 50


@pytest.mark.slow
def test_size_of_the_page_and_the_same_bytes(tmp_path, table):
    first = drawn(tmp_path / "a.png", table, *head(), lines=["nothing odd"])
    # As from a matplotlibrc in the home, or where one stands.
    with matplotlib.rc_context({"text.antialiased": False, "text.hinting": "none", "font.size": 99}):
        drawn(tmp_path / "b.png", table, *head(), lines=["nothing odd"])
        assert matplotlib.rcParams["font.size"] == 99, "those of a caller stay"
    assert first.shape == (1100, 1600, 3)
    data = (tmp_path / "a.png").read_bytes()
    assert data == (tmp_path / "b.png").read_bytes()
    assert len(data) < 1_500_000 and data.count(b"tEXt") == 1
    assert picture.made_by_of(data[:1024]) == "synthseg-native"  # so that a later call knows it for one of its own
    assert {data[i + 4 : i + 8] for i in chunks(data)} == {b"IHDR", b"tEXt", b"IDAT", b"IEND"}  # no date


def chunks(data):
    place = 8
    while place < len(data):
        yield place
        place += 12 + int.from_bytes(data[place : place + 4], "big")


def test_the_patients_left_is_on_the_right_and_marked(tmp_path, table, texts, half_size):
    page = drawn(tmp_path / "a.png", table, *head())
    for row in (0, 1):
        for column in range(5):
            left_half, right_half = cell(page, row, column)
            assert right_half.mean() > 1.5 * left_half.mean()
    left, right = ([x for words, x, _ in texts if words == letter] for letter in "LR")
    assert len(left) == len(right) == 10
    assert all(of_right < of_left for of_left, of_right in zip(left, right, strict=True))
    for column in range(5):  # and the L within the column whose right half is bright
        assert 0 < left[column] - (picture.LEFT + column * 154) < 154
    front, back = ([x for words, x, _ in texts if words == letter] for letter in "AP")
    assert len(front) == 5
    assert all(a < p for a, p in zip(front, back, strict=True))
    assert any("radiological" in words for words, _, _ in texts)


@pytest.mark.slow
def test_slices_are_said_in_mm_and_spread_over_the_labels(tmp_path, table, texts, half_size):
    drawn(tmp_path / "a.png", table, *head())
    said = [words for words, _, _ in texts if words.endswith(" mm")]
    middle = [said[2], said[7], said[12]]
    for words, expected in zip(middle, (20, -10, 5), strict=True):
        assert abs(int(words.split()[1]) - expected) <= 1
    assert [words[0] for words in said] == ["z"] * 5 + ["y"] * 5 + ["x"] * 5
    steps = np.diff([int(words.split()[1]) for words in said[:5]])
    assert np.all(abs(steps - 138 / 6) <= 1)


def test_the_front_is_up_in_axial_and_to_the_left_in_sagittal_planes(tmp_path, table, half_size):
    image, labels, affine = head()
    y = affine[1, 1] * np.arange(image.shape[1]) + affine[1, 3]
    image = np.where(image > 0, np.where(y > -10, 200.0, 100.0)[:, None], 0)
    page = drawn(tmp_path / "a.png", table, image, labels, affine)
    axial = np.concatenate(cell(page, 0, 2), axis=1)
    sagittal = cell(page, 2, 2)
    half = len(axial) // 2
    assert axial[:half].mean() > 1.4 * axial[half:].mean()
    assert sagittal[0].mean() > 1.4 * sagittal[1].mean()


@pytest.mark.parametrize("axes", ["LIA", "PSR"])
def test_the_order_of_the_axes_does_not_matter(tmp_path, table, half_size, axes):
    image, labels, affine = head()
    expected = drawn(tmp_path / "a.png", table, image, labels, affine)
    turned = nib.orientations.axcodes2ornt(axes)
    back = nib.orientations.inv_ornt_aff(turned, image.shape)
    image, labels = (nib.orientations.apply_orientation(array, turned) for array in (image, labels))
    assert np.abs(drawn(tmp_path / "b.png", table, image, labels, affine @ back) - expected).mean() < 0.05


@pytest.mark.slow
def test_oblique_thick_slices_and_another_grid_show_the_same_head(tmp_path, table, half_size):
    image, labels, affine = head()
    expected = drawn(tmp_path / "a.png", table, image, labels, affine)
    angle = np.radians(15)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    oblique = np.eye(4)
    oblique[:3, :3] = turn * [1.5, 1.5, 4]
    shape = np.array([150, 160, 45])
    oblique[:3, 3] = [5, -10, 20] - oblique[:3, :3] @ (shape - 1) / 2
    image = affine_transform(image, np.linalg.inv(affine) @ oblique, output_shape=tuple(shape), order=1)
    page = drawn(tmp_path / "b.png", table, image, labels, oblique, labels_affine=affine)
    panels = np.s_[picture.TOP : picture.HEIGHT - picture.BOTTOM]
    assert np.abs(page - expected)[panels].mean() < 6
    assert np.abs(page[:, ::-1] - expected)[panels].mean() > 12


def test_outlines_enclose_the_label_in_its_colour(tmp_path, table, texts, half_size):
    page = drawn(tmp_path / "a.png", table, *head())
    columns = slice(picture.LEFT + 2 * 154, picture.LEFT + 3 * 154)
    first_row = page[picture.TOP : picture.TOP + 110, columns]
    where = np.nonzero(yellow(first_row))
    assert len(where[0]) > 40
    size = [np.ptp(axis) + 1 for axis in where]
    scale = size[0] / 40  # the box is 30 mm wide and 40 mm long
    assert size[1] == pytest.approx(30 * scale, abs=2.5)
    inner = first_row[where[0].min() + 5 : where[0].max() - 4, where[1].min() + 5 : where[1].max() - 4]
    assert not yellow(inner).any()  # an outline, no area
    assert where[1].mean() > 77  # on the patient's left


@pytest.mark.slow
def test_only_labels_that_are_there_have_an_outline_and_moving_one_moves_it(tmp_path, table, half_size):
    image, labels, affine = head()
    page = drawn(tmp_path / "a.png", table, image, labels, affine)
    without = drawn(tmp_path / "b.png", table, image, np.where(labels == HIPPOCAMPUS, 2, labels), affine)
    higher = drawn(tmp_path / "c.png", table, *head(shift=20))
    panels = slice(picture.TOP, picture.HEIGHT - picture.BOTTOM)
    count = [yellow(each[panels]).sum() for each in (page, without, higher)]
    assert count[0] > 100
    assert count[1] == 0
    assert count[2] > 100
    height = picture.TOP + (picture.HEIGHT - picture.TOP - picture.BOTTOM) // 3
    rows = [np.nonzero(yellow(each[height : picture.HEIGHT - picture.BOTTOM]))[0].mean() for each in (page, higher)]
    assert rows[1] < rows[0] - 5  # higher up on coronal and sagittal planes


@pytest.mark.slow
def test_contrast_is_that_of_the_labelled_tissue(tmp_path, table, half_size):
    image, labels, affine = head()
    expected = drawn(tmp_path / "a.png", table, image, labels, affine)
    image[image == 0] = -1000  # as in CT; and a bright skull
    image[:2] = 30000
    page = drawn(tmp_path / "b.png", table, image, labels, affine)
    for half, before in zip(cell(page, 0, 2), cell(expected, 0, 2), strict=True):
        tissue = before.min(axis=-1) > 60
        assert abs(half[tissue] - before[tissue]).mean() < 10


def test_the_end_of_the_field_of_view_shows(tmp_path, table, half_size):
    image, labels, affine = head()
    angle = np.radians(30)
    turned = affine.copy()
    turned[:2, :2] = [[2 * np.cos(angle), -2 * np.sin(angle)], [2 * np.sin(angle), 2 * np.cos(angle)]]
    page = drawn(tmp_path / "a.png", table, image, labels, turned)
    outside = round(255 * picture.OUTSIDE)
    assert near(page, (outside,) * 3, 1).sum() > 500


@pytest.mark.parametrize("case", ["no label", "one value", "small", "nothing at all"])
def test_odd_input_is_drawn_and_named(tmp_path, table, texts, half_size, case):
    image, labels, affine = head()
    part = np.s_[20:35, 40:60, 30:45]
    image, labels, expected = {
        "no label": (image, labels * 0, "! no voxel has a label: there is no outline to draw"),
        "one value": (image * 0 + 7, labels, "! the scan has the same value everywhere that is drawn: 7"),
        "small": (image[part], labels[part], "! small field of view: 30 x 40 x 30 mm"),
        "nothing at all": (image * 0, labels * 0, "! the scan has the same value everywhere that is drawn: 0"),
    }[case]
    page = drawn(tmp_path / "a.png", table, image, labels, affine, lines=["nothing else"])
    assert page.shape == (550, 800, 3)
    words = [words for words, _, _ in texts]
    assert expected in words
    assert words[-1] == "nothing else"


@pytest.mark.parametrize("extreme", ["maximum", "minimum"])
def test_an_outline_is_as_thick_on_every_side(extreme):
    plane = np.random.default_rng(3).integers(0, 50, (40, 31)).astype(np.int32)
    expected = getattr(ndimage, f"{extreme}_filter")(plane, picture.THICK)
    np.testing.assert_array_equal(picture._of_neighbours(getattr(np, extreme), plane), expected)


def test_a_label_that_the_table_does_not_have_is_outlined_too(tmp_path, table, half_size):
    image, labels, affine = head()
    page = drawn(tmp_path / "a.png", table, image * 0, np.where(labels == HIPPOCAMPUS, 14175, 0), affine)
    assert near(page[picture.TOP : -picture.BOTTOM], (255, 255, 255), 60).sum() > 100


def test_titles_in_any_script_and_no_sound(tmp_path, table, texts, half_size, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(tmp_path / "a.png", table, *head(), title="受験者 $x_1$ \udce4\x07 Пациент Ωmega\nשלום" + "w" * 300)
    assert capfd.readouterr() == ("", "")
    title = texts[0][0]
    assert title.startswith("\ufffd\ufffd\ufffd $x_1$ \ufffd\ufffd Пациент Ωmega")
    assert len(title) <= 110


def test_long_text_is_wrapped_and_cut(tmp_path, table, texts, half_size):
    lines = ["nothing", picture.ODD + "word " * 60, *(f"{picture.ODD}line {n}" for n in range(9))]
    drawn(tmp_path / "a.png", table, *head(), lines=lines)
    below = [(words, y) for words, _, y in texts if y > picture.HEIGHT - picture.BOTTOM + 5]
    assert len(below) == picture.TEXT_LINES
    assert below[0][0] == "nothing"
    assert below[-1][0] == "! … and more: see the run record"
    assert max(len(words) for words, _ in below) <= 180
    assert below[-1][1] < picture.HEIGHT - 5


def test_lines(table):
    volumes = np.zeros(len(table))
    for name, mm3 in {"left hippocampus": 4849, "right hippocampus": 2551, "left lateral ventricle": 12000}.items():
        volumes[table.names.index(name)] = mm3
    qc = {"brain_mm3": 1234567.0, "remarks": []}
    first = "brain 1235 mL · lateral ventricle 12.0 mL left, 0.0 mL right · hippocampus 4.8 mL left, 2.6 mL right"
    assert picture.lines(qc, table, volumes) == [first, "nothing odd"]
    qc["remarks"] = ["this", "that"]
    assert picture.lines(qc, table, volumes) == [first, "! this", "! that"]


# The step of the workflow --------------------------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path, table, root):
    """Files of one run, and a function that makes the step's arguments of them, some in the place of others."""
    image, labels, affine = head()
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine), tmp_path / "image.nii.gz")
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "dseg.nii.gz")
    rows = [f"{value}\t100.000" for value in table.index[1:]]
    (tmp_path / "volumes.tsv").write_text("\n".join(["index\tsoft_volume_mm3", *rows]) + "\n")
    record = {"output": {"qc": {"brain_mm3": 1e6, "remarks": ["this is odd"]}}}
    write_sealed(tmp_path / "run.json", record)

    def given(**other):
        files = {
            "image": "image.nii.gz",
            "dseg": "dseg.nii.gz",
            "volumes": "volumes.tsv",
            "record": "run.json",
            **other,
        }
        arguments = [f"--{name}={tmp_path / file}" for name, file in files.items()]
        labels = f"--labels={root / 'models/synthseg2/labels.tsv'}"
        return [*arguments, labels, "--title=sub-01", f"--out={tmp_path}/o/a.png"]

    return given


@pytest.mark.slow
def test_nothing_of_a_picture_stays_when_it_is_drawn(table):
    """A folder of scans is drawn by one process, and Python looks seldom for rings of what holds itself."""
    image, labels, affine = head()
    gc.disable()
    try:
        picture.draw(image, affine, labels, affine, table, title="", lines=[])  # what is imported and cached
        tracemalloc.start()
        for _ in range(2):
            picture.draw(image, affine, labels, affine, table, title="", lines=[])
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        gc.enable()
    assert kept < 3 * picture.WIDTH * picture.HEIGHT  # less than one page of two


@pytest.mark.slow
def test_the_step_draws(words, tmp_path, root):
    # As from a notebook, whose backend this interpreter may not have.
    env = {"PYTHONPATH": str(root / "src"), "MPLBACKEND": "module://no_such.backend"}
    command = [sys.executable, root / "scripts/picture.py", *words()]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"picture: {tmp_path / 'o/a.png'}\n", "")
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["a.png"]
    page = np.asarray(Image.open(tmp_path / "o/a.png")).astype(int)
    assert page.shape == (1100, 1600, 3)
    assert near(page[-picture.BOTTOM :], (0xFF, 0xC0, 0x4D)).sum() > 50  # what is odd, in its colour


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("image", b"no image", "badimage.nii: "),
        ("dseg", b"no image", "cannot be used"),
        ("volumes", b"index\tsoft_volume_mm3\n2\t5\n", "cannot be used"),
        ("record", b'{"output": {}}', "cannot be used (not as it was made): run the step that makes it"),
        ("record", b"{", "cannot be used"),
    ],
)
def test_bad_input_of_the_step_is_one_line(words, tmp_path, root, capsys, monkeypatch, name, content, message):
    monkeypatch.setenv("MPLBACKEND", "agg")  # the step takes it away
    (tmp_path / f"bad{name}.nii").write_bytes(content)
    step = runpy.run_path(str(root / "scripts/picture.py"))
    assert step["main"](words(**{name: f"bad{name}.nii"})) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"picture: {tmp_path / f'bad{name}.nii'}: ")
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_a_picture_says_what_drew_it(tmp_path):
    info = PngInfo()
    info.add_text(picture.MADE_BY, "0123456789ab")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=info)
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    assert picture.made_by_of((tmp_path / "a.png").read_bytes()[:1024]) == "0123456789ab"
    assert picture.made_by_of((tmp_path / "b.png").read_bytes()[:1024]) is None and picture.made_by_of(b"") is None
