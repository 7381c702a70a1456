"""Time one slab of SynthSeg's network by an engine, in its environment: the seconds, on stdout."""

import argparse
import sys

from synthseg_native import engines, stopping
from synthseg_native.verification import speed


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", required=True, choices=engines.NAMES)
    parser.add_argument("--device", required=True, choices=["cpu", "gpu"])
    parser.add_argument("--precision", required=True, choices=engines.PRECISIONS)
    args = parser.parse_args()
    return speed.main(args.engine, args.device, args.precision)


if __name__ == "__main__":
    sys.exit(stopping.run(main))
