"""Snakemake with this file's arguments; from its first moment signals end it in one line, and no closed pipe does."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from synthseg_native.cohort import halting

halting.prepare()
halting.outlive_the_terminal()

from synthseg_native.cohort import config_files, snakemake_arguments  # noqa: E402

config_files.check(snakemake_arguments.configurations(sys.argv[1:]))

from snakemake.cli import main  # noqa: E402

sys.exit(main())
