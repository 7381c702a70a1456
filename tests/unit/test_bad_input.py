"""Bad input of three classes, one table: what is wrong, and what the one line says. The class gives the exit status.

Sheet and config: as the workflow reads them, before it runs anything. A scan: through the command. The machine: through
the command in a process of its own, with a stand-in for the network.
"""

import contextlib
import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_scans import MGH, patch, ramp, save

from processes import bound_by_modes
from synthseg_native import cli
from synthseg_native.cohort import config as configuration
from synthseg_native.cohort.samples import read_samples
from synthseg_native.errors import SynthSegError

# Sheet and config ----------------------------------------------------------------------------------------------------


def sheet(content):
    def run(folder, root):
        (folder / "samples.tsv").write_bytes(content if isinstance(content, bytes) else content.encode())
        read_samples(folder / "samples.tsv")

    return run


def rows(*lines, columns="participant_id\timage"):
    return sheet("\n".join([columns, *lines]) + "\n")


def no_sheet(folder, root):
    read_samples(folder / "samples.tsv")


def sheet_is_a_folder(folder, root):
    (folder / "samples.tsv").mkdir()
    read_samples(folder / "samples.tsv")


def config(change):
    """A configuration that is right but for this."""

    def run(folder, root):
        schema = configuration.read_schema(root / "workflow/schemas/config.schema.yaml")
        done = configuration.complete({"samples": "s.tsv", "model": "synthseg1"} | change, schema)
        configuration.complete_reference(done["reference"], done["model"])

    return run


SHEET_AND_CONFIG = {
    "no sheet": (no_sheet, "samples.tsv: no such sample sheet: write it, or set `samples:` in the config"),
    "sheet is a folder": (sheet_is_a_folder, "samples.tsv: a folder, not a sample sheet: name the sheet in it"),
    "sheet is not UTF-8": (
        sheet("participant_id\timage\n01\tä".encode("latin1")),
        "samples.tsv: cannot be read (not UTF-8 text, maybe Latin-1 or Windows-1252 (line 2)): save it as tab-",
    ),
    "sheet is empty": (sheet(""), "the column participant_id is missing; the column image is missing: correct the"),
    "no rows": (rows(), "samples.tsv: no rows: add one line per image"),
    "only comments": (sheet("# participant_id\timage\n"), "the column participant_id is missing"),
    "separated by commas": (sheet("participant_id,image\n01,a.nii\n"), "; columns are separated by tabs"),
    "column missing": (rows("01", columns="participant_id"), "the column image is missing: correct the first line"),
    "column misspelt": (
        rows("01\ta", columns="participant\timage"),
        "the column participant_id is missing (is it 'participant'?): correct the first line",
    ),
    "column twice": (rows("01\ta\tb", columns="participant_id\timage\timage"), "the column image appears twice"),
    "optional column misspelt": (
        rows("01\ta\tx", columns="participant_id\timage\tSession-ID"),
        "the column 'Session-ID' is not known; did you mean session_id?",
    ),
    "quotation mark left open": (rows('01\t"a.nii'), "not a tab-separated table (unexpected end of data): close every"),
    "cell too long": (rows(f"01\t{'a' * 200_000}"), "not a tab-separated table (field larger than field limit"),
    "row twice": (
        rows("01\ta.nii", "01\tb.nii"),
        "row 2: sub-01_T1w is row 1 again (tell them apart by session_id, acq or run)",
    ),
    "row twice on some disks": (
        rows("01A\ta.nii", "01a\tb.nii"),
        "row 2: sub-01a_T1w differs from row 1, sub-01A_T1w, in upper and lower case",
    ),
    "way out of the results": (rows("../01\ta.nii"), "row 1: participant_id is '../01': only letters and digits"),
    "way out by the session": (
        rows("01\t../../x\ta.nii", columns="participant_id\tsession_id\timage"),
        "row 1: session_id is '../../x': only letters and digits",
    ),
    "way out by the suffix": (
        rows("01\t../x\ta.nii", columns="participant_id\tsuffix\timage"),
        "row 1: suffix is '../x': one of T1w, T2w",
    ),
    "label with a space": (rows("0 1\ta.nii"), "row 1: participant_id is '0 1': only letters and digits"),
    "label with a newline": (rows('"0\n1"\ta.nii'), "row 1: participant_id is '0\\n1': only letters and digits"),
    "no participant": (rows("\ta.nii"), "row 1: participant_id is empty"),
    "ct is no truth value": (
        rows("01\ta\tmaybe", columns="participant_id\timage\tct"),
        "row 1: ct is 'maybe': write true or false",
    ),
    "suffix of no head": (rows("01\ta\tbold", columns="participant_id\timage\tsuffix"), "row 1: suffix is 'bold'"),
    "accept misspelt": (
        rows("01\ta\tno_orientatoin", columns="participant_id\timage\taccept"),
        "row 1: accept: no_orientatoin: no such flag: did you mean no_orientation?",
    ),
    "accept what is taken anyway": (
        rows("01\ta\toblique", columns="participant_id\timage\taccept"),
        "row 1: accept: oblique: no such flag: use one of no_orientation, ",
    ),
    "cells without a column": (rows("01\ta.nii\tx"), "row 1: more cells than columns"),
    "key misspelt": (config({"thraeds": 1}), "config: thraeds: unknown key; did you mean threads?"),
    "nested key misspelt": (
        config({"reference": {"runtme": "local"}}),
        "config: reference.runtme: unknown key; did you mean reference.runtime?",
    ),
    "key like no other": (config({"xyzzy": 1}), "config: xyzzy: unknown key; known keys are samples, results, "),
    "key that YAML reads as true": (config({True: 1}), "config: True: unknown key; "),
    "key with a newline": (config({"a\nb": 1}), "config: a\\nb: unknown key; "),
    "number too small": (config({"threads": 0}), "config: threads: 0 is less than the minimum of 1"),
    "number as text": (config({"threads": "two"}), "config: threads: 'two' is not of type 'integer'"),
    "truth value as text": (
        config({"allow_small_model": "maybe"}),
        "config: allow_small_model: 'maybe' is not of type 'boolean'",
    ),
    "number that is none": (
        config({"equivalence": {"max_margin": float("nan")}}),
        "config: equivalence.max_margin: nan is no finite number: give one",
    ),
    "margin that is kept as more or less the same": (
        config({"equivalence": {"max_margin": 0.066}}),
        "config: equivalence.max_margin: 0.066 is greater than the maximum of 0.065 (Largest margin",
    ),
    "home of nobody": (config({"weights": "~nobody-here/w.h5"}), "config: ~nobody-here/w.h5: there is no such user"),
    "value that is none": (config({"reference": {"runtime": "lxc"}}), "config: reference.runtime: 'lxc' is not one of"),
    "text for a section": (config({"reference": "docker"}), "config: reference: 'docker' is not of type 'object'"),
    "nothing for a section": (config({"benchmark": None}), "config: benchmark: None is not of type 'object'"),
    "no engine": (config({"engines": []}), "config: engines: "),
    "engine that there is not": (config({"engines": ["abacus"]}), "config: engines.0: 'abacus' is not one of"),
    "crop larger than any head": (
        config({"crop": 600}),
        "config: crop: 600 does not fit (Only the central part",
    ),
    "crop of which one is": (config({"crop": [64, 600, 64]}), "config: crop.1: 600 is greater than the maximum of 512"),
    "section that is a list": (config({"demonstration": [1]}), "config: demonstration: [1] is not of type 'object'"),
    "results outside": (config({"results": "/abs"}), "config: results: "),
    "no pattern": (config({"reference": {"kind": "existing"}}), "config: reference.pattern: not set: say where"),
    "upstream without container": (
        config({"reference": {"kind": "upstream", "runtime": "local"}}),
        "config: reference.runtime: kind upstream needs its container",
    ),
    "upstream has no such model": (
        config({"model": "compact2mm", "reference": {"kind": "upstream", "runtime": "docker"}}),
        "runs synthseg1 and synthseg2, not compact2mm: use kind own",
    ),
    "image for the own reference": (
        config({"reference": {"runtime": "docker", "image": "mine:1"}}),
        "config: reference.image: kind own builds its image",
    ),
}


# A scan --------------------------------------------------------------------------------------------------------------


def missing(folder):
    return folder / "scan.nii.gz"


def empty(folder):
    (folder / "scan.nii.gz").touch()
    return folder / "scan.nii.gz"


def other_kind_of_file(folder):
    (folder / "scan.dcm").write_bytes(b"DICM" * 100)
    return folder / "scan.dcm"


def named_pipe(folder):
    os.mkfifo(folder / "scan.nii")
    return folder / "scan.nii"


def link_in_a_circle(folder):
    (folder / "scan.nii").symlink_to(folder / "scan.nii")
    return folder / "scan.nii"


def unreadable(folder):
    path = save(folder / "scan.nii")
    path.chmod(0)
    return path


def cut(name, length, **fields):
    """The first bytes of a file, gzipped or not."""

    def make(folder):
        whole = save(
            folder / f"whole-{name}", np.random.default_rng(0).random((20, 20, 20)).astype(np.float32), **fields
        )
        (folder / name).write_bytes(whole.read_bytes()[:length])
        return folder / name

    return make


def gzip_with_a_hole(folder):
    path = save(folder / "scan.nii.gz", np.random.default_rng(0).random((20, 20, 20)))
    content = bytearray(path.read_bytes())
    content[1000:1200] = bytes(200)
    path.write_bytes(content)
    return path


def gzip_with_a_wrong_checksum(folder):
    path = save(folder / "scan.nii.gz")
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    return path


def text(folder):
    (folder / "scan.nii").write_text("not an image\n" * 100)
    return folder / "scan.nii"


def text_as_mgh(folder):
    (folder / "scan.mgh").write_text("not an image\n" * 100)
    return folder / "scan.mgh"


def plain_named_gz(folder):
    save(folder / "whole.nii")
    shutil.copy(folder / "whole.nii", folder / "scan.nii.gz")
    return folder / "scan.nii.gz"


def named(name, right):
    """A good image under a name of another format."""

    def make(folder):
        (save(folder / right, kind=nib.MGHImage if ".mg" in right else nib.Nifti1Image)).rename(folder / name)
        return folder / name

    return make


def empty_annex_link(folder):
    (folder / "scan.nii.gz").symlink_to("../.git/annex/objects/zK/9q/MD5E-s9--0.nii.gz/MD5E-s9--0.nii.gz")
    return folder / "scan.nii.gz"


def image(data, name="scan.nii.gz", **fields):
    return lambda folder: save(folder / name, data, **fields)


def bytes_of(name, content):
    """A file of this name with these bytes."""

    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def changed(index=0, **fields):
    """A NIfTI scan with these fields overwritten."""
    return lambda folder: patch(save(folder / "scan.nii"), index, **fields)


def changed_mgh(index=0, **fields):
    return lambda folder: patch(save(folder / "scan.mgh", kind=nib.MGHImage), index, MGH, **fields)


def with_values(**places):
    data = ramp((16, 16, 16))
    for value, n in ((np.nan, places.get("nan", 0)), (np.inf, places.get("inf", 0))):
        data[3, 4, 5 : 5 + n] = value
    return image(data)


def overflowing(folder):
    return patch(save(folder / "scan.nii", ramp().astype(float) * 1e300), scl_slope=3e38)


COLOUR = np.zeros((16, 16, 16), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
IN_METRES = np.diag([1e-3, 1e-3, 1e-3, 1])
SHEARED = nib.affines.from_matvec([[0.6542, -0.2240, 0.4566], [0.7559, 0.5106, -0.2441], [-0.0251, 0.8301, 0.8555]])
SCANS = {
    "missing": (missing, "no such file"),
    "empty": (empty, "the file is empty: copy or convert it again"),
    "other kind of file": (other_kind_of_file, "not an image file"),
    "named pipe": (named_pipe, "not an ordinary file: save the image in one"),
    "link in a circle": (link_in_a_circle, "cannot be read (Too many levels of symbolic links): correct the path"),
    "unreadable": (unreadable, "may not be read: change its permissions"),
    "gzip cut in the data": (cut("scan.nii.gz", 5000), "the file is cut off or damaged: copy or convert it again"),
    "gzip cut in the header": (cut("scan.nii.gz", 40), "the file is cut off or damaged"),
    "mgz cut": (cut("scan.mgz", 5000, kind=nib.MGHImage), "the file is cut off or damaged"),
    "NIfTI cut in the data": (cut("scan.nii", 3000), "the file is cut off: 3000 bytes, and the header wants 32352"),
    "NIfTI without its last byte": (cut("scan.nii", 32351), "32351 bytes, and the header wants 32352"),
    "NIfTI cut in the header": (cut("scan.nii", 100), "the file is cut off or damaged"),
    "mgh cut in the data": (cut("scan.mgh", 3000, kind=nib.MGHImage), "3000 bytes, and the header wants 32284"),
    "gzip with a hole": (gzip_with_a_hole, "the file is cut off or damaged"),
    "gzip with a wrong checksum": (gzip_with_a_wrong_checksum, "the file is cut off or damaged"),
    "text": (text, "not an image that can be read: convert it to NIfTI, for example with dcm2niix"),
    "text named mgh": (text_as_mgh, "not an image that can be read"),
    "no gzip, though named so": (
        plain_named_gz,
        "not compressed, though its name says so: compress it, or name it scan",
    ),
    "a gzip, though not named so": (
        bytes_of("scan.nii", gzip.compress(b"0" * 400)),
        "compressed, though its name does not say so: name it scan.nii.gz",
    ),
    "pointer of git-annex": (
        bytes_of("scan.nii.gz", b"/annex/objects/MD5E-s12345--01.nii.gz\n"),
        "a pointer of git-annex, not the image: get its content first (git annex get, datalad get)",
    ),
    "pointer of git LFS": (
        bytes_of("scan.nii.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        "a pointer of git LFS, not the image: get its content first (git lfs pull)",
    ),
    "web page": (
        bytes_of("scan.nii.gz", b"\n<!DOCTYPE html><title>Log in"),
        "a web page, not an image: download it again",
    ),
    "link of git-annex to nothing": (
        empty_annex_link,
        "a link of git-annex, and the content is not here: get it first (git annex get, datalad get)",
    ),
    "bzip2": (bytes_of("scan.nii.gz", b"BZh9" + bytes(400)), "compressed by bzip2: unpack it (bunzip2), and compress"),
    "xz": (bytes_of("scan.nii.gz", b"\xfd7zXZ\0" + bytes(400)), "compressed by xz: unpack it (unxz), and compress"),
    "zstd": (bytes_of("scan.nii.gz", b"\x28\xb5\x2f\xfd" + bytes(400)), "compressed by zstd: unpack it (unzstd)"),
    "compressed twice": (
        bytes_of("scan.nii.gz", gzip.compress(gzip.compress(bytes(400)))),
        "compressed twice: unpack it once (gunzip < scan.nii.gz > OTHER)",
    ),
    "tar": (
        bytes_of("scan.nii.gz", gzip.compress(b"sub-01.nii".ljust(257, b"\0") + b"ustar" + bytes(400))),
        "a tar archive, not an image: unpack it (tar -xf)",
    ),
    "what macOS keeps beside a file": (
        bytes_of("scan.nii", b"\0\5\x16\7\0\2\0\0" + bytes(400)),
        "what macOS keeps beside a file (._NAME), not the image: take the file without ._",
    ),
    "NRRD": (bytes_of("scan.nii", b"NRRD0004\n" + bytes(400)), "an NRRD file: convert it to NIfTI"),
    "MINC": (bytes_of("scan.nii", b"\x89HDF\r\n" + bytes(400)), "an HDF5 or MINC file: convert it to NIfTI"),
    "PNG": (bytes_of("scan.nii.gz", b"\x89PNG" + bytes(400)), "a PNG picture, not an image of voxels: give the scan"),
    "MGH named NIfTI": (
        named("scan.nii.gz", "a.mgz"),
        "an MGH file, though its name does not say so: name it scan.mgz",
    ),
    "NIfTI named MGH": (
        named("scan.mgz", "a.nii.gz"),
        "a NIfTI file, though its name does not say so: name it scan.nii.gz",
    ),
    "NIfTI named MGH, plain": (
        named("scan.mgh", "a.nii"),
        "a NIfTI file, though its name does not say so: name it scan",
    ),
    "zip": (bytes_of("scan.nii", b"PK\x03\x04" + bytes(400)), "a zip archive, not an image: unpack it"),
    "DICOM": (bytes_of("scan.nii", bytes(128) + b"DICM" + bytes(400)), "a DICOM file: convert the series to NIfTI"),
    "header of a pair of files": (changed(magic=b"ni1"), "not a NIfTI file with header and voxels in one: convert"),
    "voxels inside the header": (changed(vox_offset=0), "not a NIfTI file with header and voxels in one"),
    "voxels nowhere": (changed(vox_offset=-np.inf), "not an image that can be read"),  # nibabel: OverflowError
    "more axes than there are": (changed(dim=32767), "not an image that can be read"),
    "type of voxel that there is not": (changed(datatype=77), "not an image that can be read"),
    "mgh type that there is not": (changed_mgh(type=77), "not an image that can be read"),
    "flat": (image(ramp((30, 30))), "a 2-D image: give a 3-D image"),
    "frames": (image(ramp((16, 16, 16, 5))), "5 frames: give one 3-D image, for example one frame or the mean"),
    "mgz frames": (image(ramp((16, 16, 16, 5)), "scan.mgz", kind=nib.MGHImage), "5 frames: give one 3-D image"),
    "few slices": (image(ramp((40, 40, 10))), "40 x 40 x 10 voxels, too few slices: give an image with at least 11"),
    "few sagittal slices": (image(ramp((3, 40, 40))), "3 x 40 x 40 voxels, too few slices"),
    "RGB": (image(COLOUR), "a colour (RGB) image: give a grey-scale image"),
    "complex": (image(ramp().astype(np.complex64)), "complex values: give the magnitude image"),
    "all zeros": (image(np.zeros((16, 16, 16), np.uint8)), "all voxels are zero: give an image with contents"),
    "NaN": (with_values(nan=1), "1 voxels are NaN or infinite: replace them, for example by 0"),
    "infinite": (with_values(inf=2), "2 voxels are NaN or infinite"),
    "slope that overflows": (overflowing, "5759 voxels are NaN or infinite"),
    "infinite intercept": (changed(scl_slope=1, scl_inter=np.inf), "not an image that can be read"),
    "values too large": (image(1.5e308 * (ramp() % 2 * 2 - 1).astype(float)), "too large to compute with: correct"),
    "voxel size of zero": (changed(1, pixdim=0), "a voxel size of zero in the header: correct the header"),
    "voxel size that is no number": (changed(2, pixdim=np.nan), "voxel sizes that are no numbers: correct the header"),
    "negative voxel size": (
        changed(1, pixdim=-1),
        "a negative voxel size in the header: make it positive, or take it as it is with "
        "--accept negative_voxel_size (sheet: column accept)",
    ),
    "mgh voxel size of zero": (changed_mgh(delta=0), "a voxel size of zero in the header"),
    "mgh with negative dimensions": (changed_mgh(dims=-5), "the header claims -5 x 18 x 20 voxels"),
    "voxel sizes contradict": (changed(1, pixdim=1.2), "voxels of 1.2 x 1 x 1 mm by the header, of 1 x 1 x 1 mm by"),
    "singular affine": (changed(4, srow=[1, 0, 0, 0]), "the affine is singular: correct the header (sform, qform)"),
    "affine with NaN": (changed(srow=np.nan), "an affine that is no position in mm: correct the header"),
    "qform that is no rotation": (
        changed(sform_code=0, qform_code=1, quatern=[2, 2, 2]),
        "the qform is no rotation: correct the header",
    ),
    "no orientation": (
        changed(sform_code=0, qform_code=0),
        "neither sform nor qform is set, so left and right are unknown: set the sform or the qform, "
        "or take it as it is with --accept no_orientation (sheet: column accept)",
    ),
    "mgh without orientation": (changed_mgh(good_ras=0), "goodRASFlag is not set, so left and right and the voxel"),
    "sheared until it swaps sides": (image(ramp(), affine=SHEARED), "so sheared that left and right would be swapped"),
    "claims too many voxels": (changed(dim=[3, 2000, 2000, 2000]), "the header claims 2000 x 2000 x 2000 voxels"),
    "claims more than it holds": (changed(dim=[3, 600, 600, 600]), "bytes, and the header wants 864000352: copy"),
    "claims in mgh": (changed_mgh(dims=[600, 600, 600]), "bytes, and the header wants 864000284: copy"),
    "an axis too long to be true": (changed(dim=[3, 800, 18, 20], pixdim=[1, 2, 1, 1], srow=2), "an axis of 1600 mm"),
    "voxels too long to be true": (
        changed(pixdim=[1, 26, 1, 1], srow=[26, 0, 0, 0]),
        "voxels of 26 mm: correct the voxel sizes in the header",
    ),
    "in metres": (image(ramp(), affine=IN_METRES), "an axis of 0.016 mm: correct the voxel sizes in the header"),
}


# The machine ---------------------------------------------------------------------------------------------------------

# The command with a stand-in for the network and, where asked for, less memory or smaller files.
PROGRAM = """
import resource, sys
from types import SimpleNamespace
import nibabel, numpy as np, scipy.interpolate, scipy.ndimage
from synthseg_native import cli, engines, memory
from synthseg_native.engines.capabilities import Capabilities

memory.own_peak_mib = lambda: None  # which nobody predicted

class StandIn:
    name, version, device, device_reason = "stand-in", "1", "cpu", "asked for"
    can = Capabilities()

    def release(self):
        pass

    def run(self, inputs, smoothing):
        score = np.exp(-((inputs["image"][..., None] - np.linspace(0, 1, 32, dtype=np.float32)) ** 2) * 4000)
        yield 0, score / score.sum(axis=-1, keepdims=True)

engines.load = lambda *_: SimpleNamespace(build=lambda *_, **__: StandIn(), check=len)
kind, limit = sys.argv[1], int(sys.argv[2])
if kind == "memory":
    limit += int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
if kind == "file":
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(cli.main(sys.argv[3:]))
"""


def head(folder):
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (40, 44, 48)], indexing="ij")
    data = np.clip(200 * (1 - np.sqrt(x**2 + y**2 + z**2)) + 20 * x, 0, None).astype(np.float32)
    return save(folder / "scan.nii.gz", data)


def mounted(world):
    """A disk of 16 kB in the folder of the results."""
    world.results.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip(
            "only root on Linux may mount a disk; the cases of a file in the way and of a file too large remain"
        )
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", world.results], capture_output=True)
    if done.returncode:
        pytest.skip(f"this root may not mount a disk: {done.stderr.decode()}")
    world.at_end.callback(subprocess.run, ["umount", world.results], check=True)


def full_disk(world):
    mounted(world)
    (world.results / "filler").write_bytes(bytes(8192))
    return head(world.folder), ()


def read_only_disk(world):
    mounted(world)
    subprocess.run(["mount", "-o", "remount,ro", world.results], check=True)
    return head(world.folder), ()


def file_in_the_way(world):
    world.results.write_text("kept")
    return head(world.folder), ()


def file_too_large(world):
    return head(world.folder), ("file", 500)


def file_too_large_for_new_results(world):
    """The old ones are kept, as of every failure."""
    assert world.run_limited(head(world.folder)).returncode == 0
    assert (world.results / "dseg.nii.gz").exists()
    return save(world.folder / "scan.nii.gz", ramp((40, 44, 48))), ("file", 500)


def too_large_for_memory(name):
    def make(world):
        if sys.platform != "linux":
            pytest.skip("only Linux limits address space")
        data = np.zeros((300, 300, 300), np.uint8)
        data[100:200, 100:200, 100:200] = 1
        return save(world.folder / name, data), ("memory", 150_000_000)  # as float64 it takes 216 MB

    return make


MACHINE = {
    "full disk": (full_disk, "No space left on device: make room"),
    "read-only disk": (read_only_disk, "Read-only file system: choose a place that can be written to"),
    "file in the way": (file_in_the_way, "choose a place that can be written to"),
    "file too large": (file_too_large, "dseg.nii.gz: File too large: choose a place that can be written to"),
    "file too large for new results": (file_too_large_for_new_results, "dseg.nii.gz: File too large: "),
    "out of memory, mapped file": (too_large_for_memory("scan.nii"), "scan.nii: out of memory ("),
    "out of memory, compressed file": (too_large_for_memory("scan.nii.gz"), "scan.nii.gz: out of memory ("),
}

# All of it -----------------------------------------------------------------------------------------------------------


class World:
    """Where a case happens: a folder for its files and one for the results, which a run may not leave half done."""

    def __init__(self, root, folder, at_end):
        self.root, self.folder, self.at_end = root, folder, at_end
        self.results = folder / "results"

    def arguments(self, image):
        out = {name: self.results / file for name, file in (("--o", "dseg.nii.gz"), ("--vol", "volumes.csv"))}
        model = self.root / "models" / "compact2mm"
        return [str(word) for pair in {"--i": image, **out, "--model": model}.items() for word in pair]

    def run_limited(self, image, kind="none", limit=0):
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, kind, str(limit), *self.arguments(image)],
            env={**os.environ, "PYTHONPATH": str(self.root / "src")}, capture_output=True, text=True,
        )  # fmt: skip

    def contents(self):
        found = [self.results] if self.results.is_file() else sorted(self.results.rglob("*"))
        return {path: path.read_bytes() for path in found if path.is_file()}


@pytest.fixture
def world(root):
    with contextlib.ExitStack() as at_end:
        # A place that everybody may enter, unlike tmp_path.
        folder = Path(at_end.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        yield World(root, folder, at_end)


def in_workflow(run, world, capfd, monkeypatch):
    with pytest.raises(SynthSegError) as caught:
        run(world.folder, world.root)
    assert caught.value.code == "usage"
    return caught.value.exit_code, caught.value.message + "\n", {}


def by_command(make, world, capfd, monkeypatch):
    path = make(world.folder)
    with bound_by_modes():
        status = cli.main(world.arguments(path))
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"synthseg-native: {path}: ")
    return status, err, {}


def limited(make, world, capfd, monkeypatch):
    image, limit = make(world)
    before = world.contents()
    done = world.run_limited(image, *limit)
    # The one thing that a good call says before: why the results that are there are made again.
    assert done.stdout == "" or done.stdout == f"{world.results / 'dseg.nii.gz'} again: the image changed\n"
    assert done.stderr.startswith("synthseg-native: ")
    return done.returncode, done.stderr, before


CASES = {
    **{("sheet and config", name): (in_workflow, 2, *case) for name, case in SHEET_AND_CONFIG.items()},
    **{("scan", name): (by_command, 3, *case) for name, case in SCANS.items()},
    **{("machine", name): (limited, 4, *case) for name, case in MACHINE.items()},
}


# Those of the machine each start an interpreter with limits of its own.
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow if case[0] == "machine" else ()) for case in CASES],
    ids=": ".join,
)
def test_bad_input_ends_in_one_line_and_leaves_nothing_half_done(case, world, capfd, monkeypatch):
    how, expected, make, said = CASES[case]
    status, err, before = how(make, world, capfd, monkeypatch)
    assert status == expected
    assert said in err
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1  # no remark of a library either
    _, what, remedy = err.removeprefix("synthseg-native: ").rsplit(": ", 2)
    assert what.strip() and remedy.strip()
    assert world.contents() == before


@pytest.mark.slow
def test_where_the_machine_is_well_the_same_command_segments(world):
    done = world.run_limited(head(world.folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert {"dseg.nii.gz", "volumes.csv"} <= {path.name for path in world.contents()}


@pytest.mark.parametrize(
    ("run", "lines"),
    [
        (rows("!\ta", "01\t", "02!\tb"), ["row 1: participant_id", "row 3: participant_id"]),
        (config({"threads": 0, "device": "tpu", "xyzzy": 1}), ["config: xyzzy", "config: device", "config: threads"]),
    ],
)
def test_every_mistake_is_told_at_once(run, lines, world):
    with pytest.raises(SynthSegError) as caught:
        run(world.folder, world.root)
    told = caught.value.message.splitlines()
    assert len(told) == len(lines)
    assert all(start in line for start, line in zip(lines, told, strict=True))


# The line itself -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\u2028\x85\udcff", r"\u2028\x85\udcff"),
        ("a b'\"\\n Größe 脑", "a b'\"\\n Größe 脑"),
    ],
)
def test_a_line_stays_a_line(text, printed):
    error = SynthSegError("usage", f"{text}: wrong: mend it", "second: wrong: mend it")
    assert str(error) == error.message == f"{printed}: wrong: mend it\nsecond: wrong: mend it"
    assert len(error.message.splitlines()) == 2
