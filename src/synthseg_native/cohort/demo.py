"""The demo cohort: three template-derived phantoms as a BIDS-like folder with a sample sheet.

Standard library only when imported: the Snakefile asks for `image_paths` in an environment without nilearn. The
images themselves are made in `phantoms`.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable
from itertools import islice
from os import PathLike
from pathlib import Path

from synthseg_native.cohort.samples import read_samples
from synthseg_native.errors import SynthSegError
from synthseg_native.files import user_path, write_bytes

SECTION = "demonstration"  # of the configuration: what holds for this cohort alone
WHAT_TO_CHANGE = (
    "for a cohort of your own change `samples:` and `model:` in config/config.yaml, or add "
    "--config samples=mine.tsv model=synthseg2"
)
LINES = 20  # that its sheet may have: a header, three rows, and what an editor leaves
IMAGES = (("01", "T1w"), ("02", "T1w"), ("03", "FLAIR"))  # subject, suffix
DESCRIPTION = {
    "Name": "synthseg-native demo cohort: template-derived phantoms",
    "BIDSVersion": "1.10.0",
    "DatasetType": "raw",
    "GeneratedBy": [
        {
            "Name": "synthseg-native scripts/make_demo.py",
            "Description": "Phantoms made from the ICBM 152 2009a symmetric T1 template that nilearn carries: left "
            "lateral ventricle and right hippocampus enlarged, skull and scalp synthetic. No scans of anybody.",
        }
    ],
    "Acknowledgements": "ICBM 152 template: Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, "
    "Montreal Neurological Institute, McGill University (Fonov et al., NeuroImage 2011).",
}


def image_paths(out: str = "demo") -> list[str]:
    """Where `make` puts the images, in the order of the sheet.

    >>> image_paths()[0]
    'demo/sub-01/anat/sub-01_T1w.nii.gz'
    """
    return [f"{out}/{_name(subject, suffix)}" for subject, suffix in IMAGES]


def is_sheet(sheet: str | PathLike) -> bool:
    """Whether a sample sheet is the demonstration's: it asks for images that `make` puts into demo/, and no others.

    Every job of a cluster asks this too, so that a cohort's sheet, which is longer, is not read for it.
    """
    try:
        sheet = user_path(sheet) if isinstance(sheet, str) else sheet
        if not Path(sheet).is_file():  # what is a pipe can be read once
            return False
        with Path(sheet).open("rb") as file:
            if next(islice(file, LINES, None), None) is not None:
                return False
        images = {scan.image for scan in read_samples(sheet)}
    except (OSError, SynthSegError, TypeError, ValueError):  # whoever is to use the sheet says what is wrong with it
        return False
    return images <= set(image_paths())


def settings(config: dict) -> dict:
    """The configuration without its section `demonstration`, whose keys come in where the sheet is the demonstration's.

    What is set outside of the section goes before it.
    """
    section, rest = config.get(SECTION), {key: value for key, value in config.items() if key != SECTION}
    if not isinstance(section, dict | None):
        return config  # which the schema then refuses
    return _merged(section or {}, rest) if is_sheet(rest.get("samples")) else rest


def _merged(below: dict, above: dict) -> dict:
    both = below | above
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            both[key] = _merged(below[key], above[key])
    return both


def _name(subject, suffix):
    return f"sub-{subject}/anat/sub-{subject}_{suffix}.nii.gz"


def make(out: str | PathLike, log: Callable[[str], None] = print) -> Path:
    """Write the cohort as a BIDS-like folder with a sample sheet; return the sheet's path.

    Each file appears whole (written beside, then renamed), the sheet last: where it is, all is. The arrays are the
    same on every run.
    """
    from synthseg_native.cohort import phantoms

    out = Path(out)
    array, affine = phantoms.template()
    log("demo: deforming the template, adding skull and scalp")
    phantom = phantoms.make_phantom(array, affine)
    rows = [("participant_id", "suffix", "image")]
    for subject, suffix in IMAGES:
        name = _name(subject, suffix)
        image = phantoms.BUILDERS[subject](phantom)
        # mtime 0: the time of writing must not make another file of the same image.
        write_bytes(out / name, gzip.compress(image.to_bytes(), 6, mtime=0))
        log(f"demo: {out / name}  {' x '.join(map(str, image.shape))}  {phantoms.axes(image)}")
        rows.append((f"sub-{subject}", suffix, name))
    write_bytes(out / "dataset_description.json", (json.dumps(DESCRIPTION, indent=2) + "\n").encode())
    sheet = io.StringIO()
    csv.writer(sheet, delimiter="\t", lineterminator="\n").writerows(rows)
    write_bytes(out / "samples.tsv", sheet.getvalue().encode())
    return out / "samples.tsv"
