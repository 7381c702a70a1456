"""Draw the picture of one native run: label outlines on the image, and what is odd below."""

import argparse
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from synthseg_native import stopping
from synthseg_native.errors import SynthSegError
from synthseg_native.files import read_sealed, seal_of
from synthseg_native.networks import cards
from synthseg_native.results import picture, quality, volumes
from synthseg_native.results.staged import Staged
from synthseg_native.scan import reading


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", required=True, help="the image")
    parser.add_argument("--dseg", required=True, help="label map of the native run")
    parser.add_argument("--volumes", required=True, help="its volumes.tsv")
    parser.add_argument("--record", required=True, help="its run record")
    parser.add_argument("--labels", required=True, help="the model's labels.tsv")
    parser.add_argument("--parcels", help="its parcels.tsv, where the label map has parcels")
    parser.add_argument("--title", required=True, help="what stands above the picture")
    parser.add_argument("--made-by", default="", help="digest of what draws it, kept in the file with the record's")
    parser.add_argument("--out", required=True, type=Path, help="the PNG to write")
    arguments = parser.parse_args(argv)
    os.environ.pop("MPLBACKEND", None)  # a notebook's way of drawing, which need not be there
    try:
        draw(arguments)
    except SynthSegError as error:
        print(f"picture: {error}", file=sys.stderr)
        return error.exit_code
    print(f"picture: {arguments.out}")
    return 0


def draw(arguments):
    labels_table = cards.read_labels(arguments.labels)
    parcels = cards.read_labels(arguments.parcels) if arguments.parcels else None
    label_map = read(arguments.dseg, nib.load)
    labels = read(arguments.dseg, lambda path: np.asarray(label_map.dataobj).astype(np.int32))
    found = read(arguments.volumes, lambda path: soft_volumes(path, labels_table))
    qc, remarks = read(arguments.record, lambda path: assessed(path, labels_table))
    # Whether it may be taken was decided when it was segmented.
    image = reading.read(arguments.image, reading.ACCEPTABLE)
    with Staged() as staged:
        drawn = picture.draw(
            image.data,
            image.affine,
            labels,
            label_map.affine,
            cards.with_parcels(labels_table, parcels),
            title=arguments.title,
            lines=picture.lines(qc, labels_table, found, remarks),
            made_by=arguments.made_by and f"{arguments.made_by}-{seal_of(arguments.record)}",
        )
        staged.path(arguments.out).write_bytes(drawn)


def assessed(path, labels_table):
    """What is odd about the run by today's limits, from the figures in its record, and about its scan."""
    record = read_sealed(path)
    if record is None:
        raise ValueError("not as it was made")
    if record["output"]["qc"] is None:
        raise ValueError("it has no quality figures")
    return quality.of_record(record, labels_table), reading.remarks(record.get("input") or {})


def soft_volumes(path, labels_table):
    """Soft volumes (N,) in mm3, 0 for the background."""
    rows = volumes.read(path)
    return np.array([0.0, *(float(rows[value]["soft_volume_mm3"]) for value in labels_table.index[1:].tolist())])


def read(path, reader):
    """What the reader makes of a result; every failure in one line."""
    try:
        return reader(path)
    except Exception as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        message = f"{path}: cannot be used ({reason}): run the step that makes it"
        raise SynthSegError("bad_input", message) from error


if __name__ == "__main__":
    sys.exit(stopping.run(main))
