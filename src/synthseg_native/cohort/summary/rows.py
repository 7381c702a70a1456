"""The rows of summary.tsv, typed: one place says what a column is called, means and is measured in."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from synthseg_native.cohort.tables import MISSING, read_tsv

SCORE = "SynthSeg's quality score (a predicted Dice) of"
SCORES = {  # column -> what SynthSeg calls the group
    "score_white_matter": "general white matter",
    "score_grey_matter": "general grey matter",
    "score_csf": "general csf",
    "score_cerebellum": "cerebellum",
    "score_brainstem": "brainstem",
    "score_thalamus": "thalamus",
    "score_putamen_pallidum": "putamen+pallidum",
    "score_hippocampus_amygdala": "hippocampus+amygdala",
}
ENTITIES = ("participant_id", "session_id", "acq", "run", "suffix")


def column(meaning: str, unit: str = "") -> Any:
    """A field of `Row`: None where nothing is known."""
    return field(default=None, metadata={"meaning": meaning, "unit": unit})


@dataclass(slots=True)
class Row:
    """One row of summary.tsv, an image and an engine. Its fields are the columns, in their order.

    sheet : the user's further columns, which follow as sheet_<name>
    """

    participant_id: str | None = column("Participant, with sub-")
    session_id: str | None = column("Session, with ses-")
    acq: str | None = column("Acquisition label")
    run: str | None = column("Run label")
    suffix: str | None = column("BIDS suffix of the image")
    status: str | None = column(
        "Native run: ok, failed, missing (has not run), stale (of other settings, code or image) or edited by hand"
    )
    error_code: str | None = column(
        "Why it failed: bad_input (the image must change) or a passing cause (oom, disk, timeout, ...)"
    )
    error: str | None = column("One line of text; 'reference: ...' where only the reference failed")
    qc_flags: str | None = column(
        "What is odd about the segmentation, comma-separated, as docs/quality.md lists; none: nothing"
    )
    model: str | None = column("Network that made the label map")
    research_grade: bool | None = column("false: the model is for trying the software only")
    mode: str | None = column(
        "Mode of the pipeline: default, fast (no mirror image averaged in, no topology step), or robust"
    )
    engine: str | None = column("Engine that ran the network")
    engine_version: str | None = column("Version of the engine's runtime")
    precision: str | None = column("Number format of the network")
    device: str | None = column("Device that ran the network")
    threads: int | None = column("Threads of the native run")
    verdict: str | None = column(
        "identical, equivalent, different or not_compared: native label map against the reference's"
    )
    verdict_reason: str | None = column("The sentence behind the verdict")
    reference_kind: str | None = column("What it was compared with: own, upstream or existing")
    reference_runtime: str | None = column("What ran the reference: local, docker, podman, apptainer or none")
    reference_id: str | None = column("Image ID of the container, or hash of the existing label map")
    reference_emulated: bool | None = column("true: the reference ran under emulation of another processor")
    geometry_equal: bool | None = column("Same shape, position in space and axis order")
    n_voxels_foreground: int | None = column("Union of the foregrounds of both maps", "voxels")
    n_voxels_different: int | None = column("Voxels with another label", "voxels")
    n_voxels_contralateral: int | None = column(
        "Differing voxels that are left in one map and right in the other",
        "voxels",
    )
    min_dice: float | None = column("Lowest Dice overlap of a label that is in either map")
    min_dice_label: str | None = column("The label with it")
    max_volume_difference_mm3: float | None = column(
        "Largest volume difference of a label, native minus reference: soft volumes where both runs have them, "
        "else voxel counts times voxel size",
        "mm3",
    )
    max_volume_difference_label: str | None = column("The label with it")
    native_wall_s: float | None = column(
        "Wall time of the native run, start of the interpreter included; one run, not a benchmark",
        "s",
    )
    reference_wall_s: float | None = column("The same of the reference run", "s")
    native_peak_rss_mib: float | None = column("Peak resident memory of the native run", "MiB")
    reference_peak_rss_mib: float | None = column("The same of the reference run", "MiB")
    input_shape: str | None = column("Shape of the image", "voxels")
    input_voxel_mm: str | None = column("Voxel size of the image", "mm")
    input_orientation: str | None = column("Axis directions of the image, as RAS")
    obliquity_deg: float | None = column(
        "Largest angle between an axis of the image and its nearest anatomical axis",
        "degrees",
    )
    header_flags: str | None = column(
        "What is odd about its header, comma-separated, as docs/input.md lists; none: nothing"
    )
    output_voxel_mm: str | None = column("Voxel size of the label map on the network's grid", "mm")
    brain_mm3: float | None = column(
        "Sum of the soft volumes of all labels, ventricles included, label 24 (csf) left out",
        "mm3",
    )
    total_intracranial_mm3: float | None = column(
        "Sum of the soft volumes of all labels; only models with label 24 (csf)",
        "mm3",
    )
    n_labels_missing: int | None = column("Labels of the model without a voxel in the label map", "labels")
    labels_at_fov_edge: str | None = column(
        "Names of labels that touch the edge of the image, comma-separated; none: no label"
    )
    mean_confidence: float | None = column("Mean posterior of the labels given, over the foreground")
    score_white_matter: float | None = column(f"{SCORE} white matter, caudate, accumbens and ventral DC")
    score_grey_matter: float | None = column(f"{SCORE} cortex")
    score_csf: float | None = column(f"{SCORE} ventricles")
    score_cerebellum: float | None = column(f"{SCORE} cerebellum")
    score_brainstem: float | None = column(f"{SCORE} brain-stem")
    score_thalamus: float | None = column(f"{SCORE} thalamus")
    score_putamen_pallidum: float | None = column(f"{SCORE} putamen and pallidum")
    score_hippocampus_amygdala: float | None = column(f"{SCORE} hippocampus and amygdala")
    min_score: float | None = column("The lowest of these scores; below 0.65 look at it")
    min_score_group: str | None = column("The group with it")
    n_parcels_different: int | None = column("Voxels that are another parcel of the cortex in each map", "voxels")
    max_score_difference: float | None = column("Largest difference of a quality score of SynthSeg's")
    state_reason: str | None = column("Why the run is stale or edited; its numbers are then left out of all tables")
    cpu: str | None = column("Processor of the machine that the native run was on")
    native_predicted_peak_mib: float | None = column("Peak memory that was predicted for the native run", "MiB")
    reference_predicted_peak_mib: float | None = column("Peak memory that was predicted for the reference run", "MiB")
    input_sha256: str | None = column("Hash of the image file")
    weights_sha256: str | None = column("Hash of the weights file")
    labels_sha256: str | None = column("Hash of the native label array (shape and values)")
    reference_labels_sha256: str | None = column("Hash of the reference's label array")
    label_map: str | None = column("Native label map on the network's grid, relative to the results folder")
    label_map_native: str | None = column("The same on the image's own grid")
    picture: str | None = column("Its picture: outlines on the image")
    run_record: str | None = column("Its run record")
    sheet: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The scan's name for people.

        >>> Row(participant_id="sub-01", run="2", suffix="T1w").name
        'sub-01_run-2_T1w'
        """
        prefixes = {"acq": "acq-", "run": "run-"}
        return "_".join(prefixes.get(name, "") + getattr(self, name) for name in ENTITIES if getattr(self, name))

    def cells(self) -> dict:
        """Column -> value, not yet text."""
        known = {name: getattr(self, name) for name in COLUMNS}
        return known | {f"sheet_{name}": value for name, value in self.sheet.items()}


# Column of summary.tsv -> (unit or "", meaning), in the order of the columns.
COLUMNS = {f.name: (f.metadata["unit"], f.metadata["meaning"]) for f in fields(Row) if f.metadata}


def read_rows(path: Path) -> list[Row]:
    """The rows of a summary.tsv, columns that it lacks None. Raises OSError."""
    types = {name: _only(kind) for name, kind in get_type_hints(Row).items()}
    return [Row(**{name: _value(line.get(name, MISSING), types[name]) for name in COLUMNS}) for line in read_tsv(path)]


def _only(kind) -> type:
    """The type of a value that is there."""
    return get_args(kind)[0] if isinstance(kind, UnionType) else kind


def _value(text: str, kind: type):
    if text == MISSING:
        return None
    return text == "true" if kind is bool else kind(text)
