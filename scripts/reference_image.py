"""Build the container image of the reference, without network, from wheels that are fetched once."""

import argparse
import os
import sys
from pathlib import Path

from synthseg_native import stopping
from synthseg_native.cohort import containers
from synthseg_native.errors import SynthSegError


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build the image and print its name")
    build.add_argument("--runtime", default="docker", choices=("docker", "podman"))
    base = os.environ.get("SYNTHSEG_BASE_IMAGE") or containers.BASE_IMAGE
    build.add_argument("--base", default=base, metavar="IMAGE", help=f"any image with Python 3.11 and venv ({base})")
    build.add_argument("--platform", metavar="OS/ARCH", help="such as linux/amd64 (default: the daemon's own)")
    build.add_argument(
        "--wheelhouse", type=Path, metavar="DIR", help="wheels of envs/tensorflow.txt (default: fetched)"
    )
    args = parser.parse_args(argv)
    try:
        print(containers.build(args.runtime, args.base, args.platform, args.wheelhouse))
    except SynthSegError as error:
        print(f"reference_image: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(stopping.run(main))
