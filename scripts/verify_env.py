"""Probe what the devices of this machine can do, and decide which one to use: a table, and a JSON file."""

import argparse
import sys

from synthseg_native import stopping
from synthseg_native.verification import verify


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environment", required=True, choices=sorted(verify.BACKENDS), help="this interpreter's")
    parser.add_argument("--out", required=True, metavar="JSON")
    args = parser.parse_args()
    try:
        return verify.main(args.environment, args.out)
    except OSError as error:
        return f"synthseg-native: {error}"


if __name__ == "__main__":
    sys.exit(stopping.run(main))
