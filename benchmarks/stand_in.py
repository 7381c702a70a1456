"""Plays scripts/native.py and scripts/picture.py for cohort.py: small results of one scan that count as current.

Beside it lies template.json: the run record, and the bytes of the other files. `stand_in.py lay` writes the results of
a whole sheet at once. Only the standard library, as each of ten thousand jobs starts it.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

RUNS = "the stand-in runs"
FILES = ("dseg", "sidecar", "volumes", "margin", "dseg-native", "sidecar-native")
END = b"\0\0\0\0IEND\xaeB`\x82"


def write(path: str, data: bytes) -> None:
    """Write a file, its folder too."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)


def run(template: dict, arguments: dict[str, str]) -> str:
    """Write a run's results, the record last; returns the record's seal. arguments: of scripts/native.py."""
    data = {name: template["files"][name].encode("latin-1") for name in FILES}
    record = template["record"] | {
        "key": json.loads(arguments["--settings"]),
        "files": {name.replace("-", "_"): hashlib.sha256(data[name]).hexdigest() for name in FILES},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    record["seal"] = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
    for name in FILES:
        write(arguments[f"--{name}"], data[name])
    write(arguments["--record"], json.dumps(record, indent=2).encode())
    return record["seal"]


def picture(made_by: str) -> bytes:
    """The first and the last bytes of a picture."""
    word = b"synthseg-native\0" + made_by.encode()
    return b"\x89PNG\r\n\x1a\n" + len(word).to_bytes(4, "big") + b"tEXt" + word + END


def lay(template: dict) -> None:
    """Results of every row of the sheet in this folder."""
    from synthseg_native.cohort.plan import Plan

    plan = Plan(json.loads(Path("config.json").read_bytes()), Path(), dry_run=True)
    (engine,), grid = plan.engines, plan.resolution
    ends = {"dseg": f"{grid}_dseg.nii.gz", "sidecar": f"{grid}_dseg.json", "volumes": f"{grid}_volumes.tsv",
            "margin": f"{grid}_margin.nii.gz", "dseg-native": "native_dseg.nii.gz",
            "sidecar-native": "native_dseg.json", "record": f"{grid}_run.json"}  # fmt: skip
    for scan in plan.scans:
        base = f"results/{engine}/{scan}_seg-{plan.name}_res-"
        settings = plan.identities.native_settings(engine, scan)
        seal = run(template, {"--settings": settings, **{f"--{name}": base + end for name, end in ends.items()}})
        made_by = plan.identities.made_by("picture.py", engine, scan)
        write(f"{base}{grid}_qc.png", picture(f"{made_by}-{seal}"))


def main() -> None:
    template = json.loads(Path(__file__).with_name("template.json").read_bytes())
    arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=False))
    if sys.argv[1] == "lay":
        lay(template)
    elif "--made-by" in arguments:
        seal = json.loads(Path(arguments["--record"]).read_bytes())["seal"]
        write(arguments["--out"], picture(f"{arguments['--made-by']}-{seal}"))
    else:
        print(RUNS, flush=True)
        run(template, arguments)


if __name__ == "__main__":
    main()
