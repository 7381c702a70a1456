"""Files that are nearly scans: reading them gives a scan or our own error, in little memory, and says nothing.

    python tests/unit/test_fuzzed_headers.py 100000

runs as many mutations in a process of its own, with 1 GB more address space than it starts with.
"""

import collections
import gzip
import io
import json
import os
import re
import resource
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synthseg_native.errors import SynthSegError
from synthseg_native.results import images
from synthseg_native.scan.reading import ACCEPTABLE, read

MUTATIONS = 10_000
MEMORY = 10**9
EXTREMES = {
    "f": (0, -1, 1, 2, 4, 1e-3, 0.7, 1e3, 1e30, -1e30, 3e38, 1e-45, np.nan, np.inf, -np.inf),
    "d": (0, -1, 1, 2, 4, 1e-3, 0.7, 1e3, 1e300, -1e300, 1e-310, np.nan, np.inf, -np.inf),
    "h": (0, 1, -1, 2, 3, 4, 5, 7, 8, 10, 11, 13, 16, 64, 100, 128, 512, 1024, 1536, 2048, 32767, -32768),
    "i": (0, 1, -1, 2, 3, 12, 348, 540, 1536, 2**15, 2**24, 2**30, 2**31 - 1, -(2**31)),
    "q": (0, 1, -1, 2, 3, 12, 352, 544, 1290, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63)),
    "B": (0, 1, 2, 3, 4, 5, 7, 8, 10, 31, 127, 255),
}


def fields_of(dtype, order):
    """(offset, struct format) of each number and each byte of text in a header."""
    found = []
    for name in dtype.names:
        part, start = dtype.fields[name][:2]
        kind = part.base.char if part.base.char in EXTREMES else "B"
        size = struct.calcsize(kind)
        found += [(start + at, order + kind) for at in range(0, part.itemsize - size + 1, size)]
    return found


def originals():
    """Name, bytes (uncompressed) and header fields of valid files of every kind."""
    data = np.arange(12**3, dtype=np.float32).reshape(12, 12, 12)
    found = []
    for kind, order in ((nib.Nifti1Image, "<"), (nib.Nifti1Image, ">"), (nib.Nifti2Image, "<")):
        header = kind.header_class(endianness=order)
        image = kind(data, np.diag([-1, 1, 1, 1]), header)
        image.set_qform(image.affine, 1)
        found.append((image.to_bytes(), fields_of(header.template_dtype, order)))
    image = nib.MGHImage(data, np.eye(4))
    found.append((image.to_bytes(), fields_of(image.header_class._hdrdtype, ">")))
    names = (("scan.nii", "scan.nii.gz"),) * 3 + (("scan.mgh", "scan.mgz"),)
    return [(name, *parts) for parts, both in zip(found, names, strict=True) for name in both]


ORIGINALS = originals()
# hypothesis takes longer over a draw than `read` over a file: so a draw is one string of bytes with many mutations,
# each 2 bytes for the file and how it is treated, and up to four edits of 6 bytes.
PER_DRAW, LENGTH = 10, 26
draws = st.binary(min_size=PER_DRAW * LENGTH, max_size=PER_DRAW * LENGTH)


def mutate(content, fields, edits):
    """The content with fields set to extreme values, bytes changed, the rest cut off, bytes taken out or put in."""
    content = bytearray(content)
    for what, value, where in struct.iter_unpack("<BBI", edits):
        what = "fffffbbtid"[what % 10]
        near = where % min(len(content), 600) if value % 4 else where % len(content)  # mostly in the header
        if what == "f" and fields:
            offset, kind = fields[where % len(fields)]
            choices = EXTREMES[kind[1]]
            new = struct.pack(kind, choices[value % len(choices)])
            if offset + len(new) <= len(content):
                content[offset : offset + len(new)] = new
        elif what in "fb":
            content[near] = value % 256
        elif what == "t":
            del content[where % len(content) + 1 :]
        elif what == "i":
            content[near:near] = bytes([value % 256]) * (value % 40)
        else:
            del content[near : near + value % 40]
        if not content:
            break
    return bytes(content)


def fuzz(count, folder):
    """Read so many mutated files; how often which outcome came. Raises what `read` should not."""
    outcomes = collections.Counter()

    def try_one(number, treatment, edits):
        name, content, fields = ORIGINALS[number % len(ORIGINALS)]
        edits = edits[: 6 * (1 + treatment // 2 % 4)]
        compressed = name.endswith("z")
        if compressed and treatment % 5 == 0:
            content = mutate(gzip.compress(content, 1, mtime=0), (), edits)
        else:
            content = mutate(content, fields, edits)
            content = gzip.compress(content, 1, mtime=0) if compressed else content
        path = folder / name
        path.write_bytes(content)
        try:
            found = read(path, ACCEPTABLE if treatment % 2 else ())
        except SynthSegError as error:
            assert error.code == "bad_input"
            outcomes[re.sub(r"[-+.\de]*\d( x )?", "", error.message.split(": ")[1])] += 1
            return
        outcomes["read"] += 1
        assert np.isfinite(found.data).all()
        json.dumps(found.description, allow_nan=False)
        if treatment % 4 == 1:
            images.save_labels(folder / "labels.nii", np.zeros(found.data.shape), found.affine, found.header)

    @settings(
        max_examples=count // PER_DRAW,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(draws)
    def try_many(drawn):
        for start in range(0, len(drawn), LENGTH):
            number, treatment, *_ = mutation = drawn[start : start + LENGTH]
            try_one(number, treatment, mutation[2:])

    try_many()
    return outcomes


def main(count):
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        fuzz(50, Path(folder))  # what is imported late is there before the limit is set
        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        if sys.platform == "linux":
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        outcomes = fuzz(count, Path(folder))
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before
    print(json.dumps({"taken": taken, "outcomes": outcomes}))


@pytest.mark.slow
def test_mutated_files_give_a_scan_or_our_own_error(root):
    done = subprocess.run(
        [sys.executable, __file__, str(MUTATIONS)],
        env={**os.environ, "PYTHONPATH": str(root / "src")}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")  # no remark of a library either
    found = json.load(io.StringIO(done.stdout))
    assert found["taken"] < MEMORY
    outcomes = found["outcomes"]
    assert sum(outcomes.values()) >= MUTATIONS
    assert outcomes["read"] > 0.05 * MUTATIONS
    assert len(outcomes) > 15


if __name__ == "__main__":
    main(int(sys.argv[1]))
