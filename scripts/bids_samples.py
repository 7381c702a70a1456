"""Write a sample sheet from a BIDS dataset, and list on stderr what was left out and why."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  (called by people, with any Python)
    sys.exit("bids_samples: this is Python %d.%d: use Python 3.11 or newer" % sys.version_info[:2])  # noqa: UP031

import argparse
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from synthseg_native import stopping
from synthseg_native.cohort import bids
from synthseg_native.errors import SynthSegError, printable


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path, metavar="BIDS_DIR")
    parser.add_argument("--out", type=Path, default=Path("samples.tsv"), metavar="TSV", help="default: samples.tsv")
    parser.add_argument("--force", action="store_true", help="overwrite the sheet if it has rows")
    options = parser.parse_args(argv)
    try:
        found = bids.find_images(options.dataset)
        for path, reason in found.left_out:
            print(f"left out: {printable(path)}: {reason}", file=sys.stderr)
        if not found.rows:
            raise SynthSegError("usage", f"{options.dataset}: no image found for the sheet: see what was left out")
        bids.write_sheet(found.rows, options.dataset, options.out, options.force)
    except SynthSegError as error:
        print(f"bids_samples: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.out}: {found.sum()}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(stopping.run(main))
