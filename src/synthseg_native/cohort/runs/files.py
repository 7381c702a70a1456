"""What the files of a run are called in its work folder, and the parts of the code that a run calls."""

import stat
from pathlib import Path

from synthseg_native import measure
from synthseg_native.errors import SynthSegError

SOURCE = Path(__file__).resolve().parents[3]  # the folder that holds the package: the child runs the same code
MEASURE = Path(measure.__file__)
REFERENCE = SOURCE / "synthseg_native" / "reference.py"

# Outputs by the names that `cohort.paths` has for them; the run record is one more.
REFERENCE_FILES = {"dseg": "dseg.nii.gz", "sidecar": "dseg.json", "volumes": "volumes.tsv"}
NATIVE_FILES = {
    **REFERENCE_FILES,
    "margin": "margin.nii.gz",
    "dseg_native": "dseg_native.nii.gz",
    "sidecar_native": "dseg_native.json",
}
SCORES = "scores.csv"  # SynthSeg's quality scores, which the run record then holds
RECORD = "run.json"
LOG = "log.txt"  # all that the run said


def need_image(image: Path) -> None:
    """Raise SynthSegError where there is no such image, or what is read in vain: a pipe, a device."""
    try:
        mode = image.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise SynthSegError("bad_input", f"{image}: no such file: correct the path") from None
    except OSError as error:  # a closed folder, a circle of links, a name that is too long
        raise SynthSegError("bad_input", f"{image}: cannot be opened ({error.strerror}): correct the path or its "
                            "permissions") from None  # fmt: skip
    if not stat.S_ISREG(mode):
        raise SynthSegError("bad_input", f"{image}: not an ordinary file: save the image in one")


def need_outputs(work: Path, files: list[str]) -> None:
    """Raise SynthSegError where a run that ended well did not write one of its files."""
    for file in files:
        if not (work / file).is_file():
            raise SynthSegError("internal", f"{file}: the run said it went well, but did not write it: report this")
