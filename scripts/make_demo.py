"""Make the demo cohort: three template-derived phantoms and their sample sheet (runs in the demo environment)."""

import argparse
import sys
from pathlib import Path

from synthseg_native import stopping
from synthseg_native.cohort import demo


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to fill")
    options = parser.parse_args(argv)
    try:
        demo.make(options.out, log=lambda line: print(line, file=sys.stderr, flush=True))
    except OSError as error:
        print(f"make_demo: {options.out}: cannot be written ({error}): choose another folder", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(stopping.run(main))
