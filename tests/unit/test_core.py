"""The pure core: numbers in, numbers out, in the order of its stages, by several threads at once."""

import ast
import json
import os
import subprocess
import sys
import warnings

import nibabel as nib
import numpy as np
import pytest
from stand_in import Brightness, affine, head

from synthseg_native.networks import cards
from synthseg_native.pipeline import core
from synthseg_native.scan import reading

# What reads, writes, tells the time or the user something.
AROUND_IT = ("cli", "jobs", "progress", "measure", "memory", "cohort", "pipeline.segment")
WRITERS = ("results.staged", "results.images", "results.tables", "results.sidecar", "results.record")


@pytest.fixture(scope="module")
def model(root):
    return cards.load(root / "models" / "compact2mm")


@pytest.fixture
def image():
    return core.image_of(head(), affine())


@pytest.fixture
def drawn(monkeypatch):
    """The images of pictures, which are not drawn: that takes its time."""
    images = []

    def draw(image, *rest, lines, **more):
        images.append(image.copy())
        return "; ".join(lines).encode()

    monkeypatch.setattr(core.picture, "draw", draw)
    return images


def segmented(image, model, options=None, **hooks):
    return core.segment(image, model, Brightness(), options or core.Options(fast=True), **hooks)


def test_the_core_imports_nothing_that_writes(root):
    code = "import sys; import synthseg_native.pipeline.core; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    loaded = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    mine = [name for name in loaded.stdout.split() if name.startswith("synthseg_native.")]
    assert "synthseg_native.pipeline.posteriors" in mine
    assert not [name for name in mine if name.removeprefix("synthseg_native.").startswith((*AROUND_IT, *WRITERS))]


@pytest.mark.parametrize("module", ["pipeline/core", "pipeline/posteriors", "pipeline/smoothing", "scan/grid",
                                    "scan/own_grid", "results/quality", "results/picture"])  # fmt: skip
def test_no_stage_has_a_clock_a_path_or_a_file(root, module):
    tree = ast.parse((root / "src" / "synthseg_native" / f"{module}.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & {"time", "datetime", "pathlib", "os", "shutil", "tempfile", "tqdm", "sys", "nibabel"}
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"open", "print"}


# Every file that is opened for writing, and every change of a folder, is an event that an audit hook hears of.
AUDITED = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import scipy.ndimage
import stand_in
from synthseg_native.networks import cards
from synthseg_native.pipeline import core
from synthseg_native.results import picture

model = cards.load(sys.argv[2])
image = core.image_of(stand_in.head(), stand_in.affine())
options = core.Options(own_grid=True, threads=2)
picture.WIDTH, picture.HEIGHT = 800, 550  # takes less time
core.draw(image, core.segment(image, model, stand_in.Brightness(), options), model, "head")  # what is cached once
heard = []

def hear(event, given):
    if event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        heard.append(str(given[0]))
    if event in ("os.mkdir", "os.rename", "os.remove", "shutil.copyfile", "subprocess.Popen", "socket.connect"):
        heard.append(event)

sys.addaudithook(hear)
result = core.segment(image, model, stand_in.Brightness(), options)
drawn = core.draw(image, result, model, "head")
before = len(heard)
open(os.devnull, "w").close()
print(json.dumps([before, len(heard), drawn[:4] == b"\\x89PNG", result.own.labels.any().item()]))
"""


@pytest.mark.slow
def test_the_core_writes_nothing(root):
    command = [sys.executable, "-c", AUDITED, root / "tests" / "unit", root / "models" / "compact2mm"]
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0, 1, True, True]
    assert done.stderr == ""


@pytest.mark.slow
def test_it_gives_what_the_command_writes(stand_in, root, scan, tmp_path):
    from synthseg_native import cli

    arguments = ["--i", scan, "--o", tmp_path / "o.nii", "--native-grid", tmp_path / "own.nii", "--post",
                 tmp_path / "post.nii", "--picture", tmp_path / "qc.png", "--record", tmp_path / "run.json",
                 "--model", root / "models" / "compact2mm"]  # fmt: skip
    assert cli.main([str(argument) for argument in arguments]) == 0
    notes = json.loads((tmp_path / "run.json").read_text())
    title = "scan.nii.gz · compact2mm (not for research)"
    found = reading.read(scan)
    model = cards.load(root / "models" / "compact2mm")
    result = core.segment(found, model, Brightness(), core.Options(own_grid=True))
    for name, array in (("o", result.labels), ("own", result.own.labels), ("post", result.posteriors())):
        np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / f"{name}.nii").dataobj), array)
    np.testing.assert_array_equal(nib.load(tmp_path / "o.nii").affine, result.affine)
    assert (tmp_path / "qc.png").read_bytes() == core.draw(found, result, model, title)
    assert notes["output"] == json.loads(json.dumps(result.facts))


def test_the_stages_come_in_their_order(image, model):
    told, gridded = [], []
    options = core.Options(fast=True, own_grid=True)
    segmented(image, model, options, on_stage=lambda *stage: told.append(stage), on_grid=lambda g: gridded.append(g))
    further = {"parcels", "scores"}  # of networks that this call asks for none of
    assert tuple(dict.fromkeys(stage for stage, _ in told)) == tuple(s for s in core.STAGES if s not in further)
    assert told[0] == ("grid", 0.0) and ("network", 1.0) in told
    assert all(0 <= share <= 1 for _, share in told)
    assert gridded[0].affine.shape == (4, 4) and gridded[0].data is None  # let go, when it was told
    told.clear()
    segmented(image, model, on_stage=lambda *stage: told.append(stage))
    assert {stage for stage, _ in told} == {"grid", "network", "labels", "measures", "quality"}


def test_an_engine_may_be_made_when_it_is_needed(image, model):
    told = []

    def engine(network):
        told.append(network)
        return Brightness()

    core.segment(image, model, engine, core.Options(fast=True), on_stage=lambda stage, share: told.append(stage))
    assert told[:3] == ["grid", model.network, "network"]


def test_what_is_given_is_left_alone_unless_it_may_be_let_go(image, model):
    before = image.data.copy(), image.affine.copy()
    first = segmented(image, model, core.Options(fast=True, ct=True, autocrop=True, own_grid=True))
    np.testing.assert_array_equal(image.data, before[0])
    np.testing.assert_array_equal(image.affine, before[1])
    again = segmented(image, model, core.Options(fast=True, ct=True, autocrop=True, own_grid=True), release=True)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert image.data is None


def test_a_picture_shows_the_scan_and_says_what_is_odd_about_it(image, model, drawn):
    said = core.draw(image, segmented(image, model), model, "head", ["an axis is askew"])
    assert b"; ! the scan: an axis is askew; ! " in said
    np.testing.assert_array_equal(drawn, [image.data])


def test_outside_a_crop_all_is_background(image, model):
    result = segmented(image, model, core.Options(fast=True, crop=(16, 16, 16)))
    posteriors = result.posteriors()
    assert posteriors.shape == (*result.labels.shape, 32) == (20, 22, 24, 32)
    assert (posteriors[0, 0, 0, 0], result.labels[0, 0, 0], result.margin()[0, 0, 0]) == (1, 0, 0)
    assert result.margin().shape == result.labels.shape


def test_posteriors_that_are_no_numbers_are_an_error(image, model):
    class Broken(Brightness):
        def run(self, inputs, smoothing=0.0):
            for start, slab in super().run(inputs, smoothing):
                slab[32, 32, 32] = np.nan
                yield start, slab

    with pytest.raises(core.posteriors_of.SynthSegError, match="some are no numbers"):
        core.segment(image, model, Broken(), core.Options(fast=True))


def test_readers_at_once_leave_warnings_and_remarks_as_they_were():
    logger = nib.imageglobals.logger
    filters, disabled = list(warnings.filters), logger.disabled
    one, other = reading._quiet(), reading._quiet()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert logger.disabled
    with warnings.catch_warnings(record=True):
        warnings.warn("not heard", stacklevel=1)  # an error in these tests, if it were
    other.__exit__(None, None, None)
    assert (list(warnings.filters), logger.disabled) == (filters, disabled)


def test_voxel_sizes_of_an_array_are_those_of_its_affine():
    turned = [[0, 2, 0, 1], [3, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]]
    np.testing.assert_array_equal(core.image_of(np.zeros((2, 2, 2)), turned).voxel_mm, [3, 2, 1])


# In the environment of the engine: two scans, one after the other, then at once, each with an engine of its own.
THREADS = """
import hashlib, json, sys, threading
import numpy as np
from synthseg_native.engines import load
from synthseg_native.networks import cards, layers
from synthseg_native.pipeline import core
from synthseg_native.results import picture

picture.WIDTH, picture.HEIGHT = 800, 550  # takes less time
name, folder = sys.argv[1:]
model = cards.load(folder)
table = model.network.table()
weights = layers.read_weights(model.folder / model.weights.file, table)
rng = np.random.default_rng(2)

def scan(shape, voxel_mm):
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    data = np.clip(200 * (1 - np.sqrt(x**2 + y**2 + z**2)) + 20 * x + rng.normal(0, 3, shape), 0, None)
    return core.image_of(data, np.diag([*voxel_mm, 1.0]))

scans = [scan((46, 56, 46), (2, 2, 2)), scan((60, 40, 70), (1.5, 3, 2))]
options = [core.Options(own_grid=True), core.Options(fast=True, own_grid=True, threads=2)]
bytes_of = lambda scan, result: [hashlib.sha256(np.ascontiguousarray(array)).hexdigest() for array in (
    result.labels, result.posteriors(), result.margin(), result.own.labels, result.volumes,
    np.frombuffer(core.draw(scan, result, model, "one"), np.uint8))]
engines = [None, None]
found = {"after": [None, None], "at once": [None, None], "new engines": [None, None]}

def run(what, n, fresh):
    if fresh:
        engines[n] = load(name).build(table, weights, threads=1)
    found[what][n] = bytes_of(scans[n], core.segment(scans[n], model, engines[n], options[n]))

for n in range(2):
    run("after", n, True)
for what, fresh in (("at once", False), ("new engines", True)):
    threads = [threading.Thread(target=run, args=(what, n, fresh)) for n in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_two_scans_at_once_give_the_same_bytes_as_one_after_the_other(root, llvm_python):
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    command = [llvm_python, "-c", THREADS, "llvm", root / "models" / "compact2mm"]
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    first, second = found["after"]
    assert len(first) == len(second) == 6 and not set(first) & set(second)
    assert found["at once"] == found["new engines"] == found["after"]
