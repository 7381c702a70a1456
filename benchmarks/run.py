"""Measure whole commands, engines against reference.py (and upstream) in turn: make benchmark. See README.md here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from synthseg_native.cohort.benchmark.command import main

if __name__ == "__main__":
    sys.exit(main())
