"""Compare one native label map with its reference; write the comparison as JSON."""

import argparse
import json
import sys
from pathlib import Path

from synthseg_native import stopping
from synthseg_native.compare import compare_label_maps
from synthseg_native.errors import SynthSegError
from synthseg_native.files import read_sealed, seal_of, write_sealed
from synthseg_native.results.verdicts import verdict_text


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--native", required=True, help="label map of the native run")
    parser.add_argument("--native-record", required=True, help="its run record")
    parser.add_argument("--native-volumes", help="its volumes.tsv")
    parser.add_argument("--margin", help="its margin map")
    parser.add_argument("--reference", required=True, help="label map of the reference run")
    parser.add_argument("--reference-record", required=True, help="its run record")
    parser.add_argument("--reference-volumes", help="its volumes.tsv")
    parser.add_argument("--labels", required=True, help="the model's labels.tsv")
    parser.add_argument("--parcels", help="its parcels.tsv, where the label maps have parcels")
    parser.add_argument("--thresholds", default="{}", type=json.loads, help="JSON object; overrides the defaults")
    parser.add_argument("--made-by", help="digest of what compares, kept in the file with the records'")
    parser.add_argument("--out", required=True, type=Path, help="where to write the comparison")
    arguments = parser.parse_args(argv)
    try:
        result = compare(arguments)
    except SynthSegError as error:
        print(f"compare: {error}", file=sys.stderr)
        return error.exit_code
    write_sealed(arguments.out, result)
    return 0


def compare(arguments) -> dict:
    """The comparison, with what was compared: who made both maps and the hashes of their label arrays."""
    native, reference = read_record(arguments.native_record), read_record(arguments.reference_record)
    result = compare_label_maps(
        arguments.native,
        arguments.reference,
        arguments.labels,
        margin_path=arguments.margin,
        thresholds=arguments.thresholds,
        native_volumes=arguments.native_volumes,
        reference_volumes=arguments.reference_volumes,
        parcels_path=arguments.parcels or None,
        scores=[scores_of(record) for record in (native, reference)],
    )
    about = reference["reference"]
    text = verdict_text(result["verdict"], about["kind"])
    records = [seal_of(path) for path in (arguments.native_record, arguments.reference_record)]
    made_by = {"made_by": "-".join([arguments.made_by, *records])} if arguments.made_by else {}
    return {"schema": 1, "scan": native["scan"], "verdict_text": text, "reference": about, **made_by, **result}


def scores_of(record) -> dict[str, float] | None:
    """SynthSeg's quality scores of a run, where it has any: an engine has them among its figures."""
    output = record.get("output") or {}
    return output.get("scores") or (output.get("qc") or {}).get("scores")


def read_record(path) -> dict:
    if record := read_sealed(path):
        return record
    raise SynthSegError("bad_input", f"{path}: no run record, or not as it was made: run the step that makes it")


if __name__ == "__main__":
    sys.exit(stopping.run(main))
