"""The workflow's step around a run: its command line, what it prints, and how it ends."""

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from synthseg_native import shared_disk, stopping
from synthseg_native.cohort.runs import child, work
from synthseg_native.cohort.runs.failures import unexpected
from synthseg_native.cohort.runs.files import RECORD, SOURCE
from synthseg_native.errors import EXIT_CODES, SynthSegError, of_system
from synthseg_native.files import write_sealed
from synthseg_native.results import kept
from synthseg_native.results import record as record_of


def megabytes(text: str) -> int | None:
    """A number of MB from the command line; None where the configuration says none."""
    return int(text) if text else None


def step_parser(description: str, files: Iterable[str]) -> argparse.ArgumentParser:
    """The command line that the steps of native and reference runs share.

    files: names of the outputs beside the record. `--timeout-min` becomes `timeout`, in seconds.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--scan", required=True, help="composed name, sub-01/anat/sub-01_T1w")
    parser.add_argument("--image", required=True, type=Path)
    parser.add_argument("--settings", required=True, type=json.loads, metavar="JSON", help="rerun key of the run")
    parser.add_argument("--python", required=True, help="interpreter that runs the network")
    parser.add_argument("--model", required=True, type=Path, metavar="DIR")
    parser.add_argument("--weights", required=True, type=Path, metavar="H5")
    parser.add_argument("--failures", required=True, type=Path, metavar="DIR", help="for the record of a failure")
    minutes = {"dest": "timeout", "type": lambda text: 60 * float(text), "metavar": "MINUTES"}
    parser.add_argument("--timeout-min", **minutes, help="limit of the run")
    for name in (*files, "record"):
        parser.add_argument(f"--{name.replace('_', '-')}", required=True, type=Path, metavar="OUT")
    return parser


def step(
    scan: str,
    settings: dict,
    places: Mapping[str, Path],
    failure_path: Path,
    run: Callable[[Path], dict],
) -> int:
    """Do one run and publish it; return the exit status of the step.

    scan, settings: for the record of a run that never began. places: {name: path} with dseg, sidecar, volumes,
    record, and of a native run the others of NATIVE_FILES. failure_path: where the record of a failed run goes;
    removed after a success. run(work) makes the run record.

    If another process has started on the same outputs since, this one leaves them to it. A signal ends the run, its
    processes and its work folder.
    """
    with stopping.hearing():
        return _step(scan, settings, places, failure_path, run)


def _step(scan, settings, places, failure_path, run):
    places, failure_path = {name: Path(path) for name, path in places.items()}, Path(failure_path)
    if SOURCE.parent.name.startswith("code-"):  # a snapshot, which is kept while steps run from it
        shared_disk.refresh(SOURCE.parent)
    stopped = None
    # Its shell lets Ctrl-C pass: then Snakemake's process has said what ends the call, and ends the steps by SIGTERM.
    told = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    kind = "native" if "margin" in places else "reference"
    record, folder, root = child.new_record(kind, scan, settings), None, work.root_of(places["record"])
    who = f"{Path(scan).name}: {record['engine']['name']}"
    try:
        try:
            if settings.get("refused"):  # by the sheet itself
                raise SynthSegError("bad_input", settings["refused"])
            folder = work.open_work(root)
            print(f"{who} runs", flush=True)
            record = run(folder)
            if record["status"] == "ok" and work.may_publish(root, folder):
                record["files"] = work.hashes(folder, places)
                write_sealed(folder / RECORD, record)
                stopping.deafen()  # this is done whole, or not begun
                work.publish(folder, places)
                failure_path.unlink(missing_ok=True)
                _tell_kept(who, places)
        except stopping.Stopped as reason:
            stopped = reason
            record_of.fail(record, SynthSegError("killed", f"{scan}: stopped by {reason}: call again"))
        except SynthSegError as error:
            record_of.fail(record, error)
        except OSError as error:
            record_of.fail(record, of_system(error, root))
        except Exception as error:
            record_of.fail(record, unexpected(error, scan, folder or root))
        stopping.deafen()  # what is left to do is short
        if folder is not None and not work.may_publish(root, folder):
            print(f"{who}: another process has taken this over", file=sys.stderr)
            return 1
        if record["status"] == "ok":
            _tell_success(who, record)
            return 0
        _keep_failure(failure_path, record, scan, settings)
        error = record["error"]
        if error["code"] == "internal" and folder is not None:
            print(child.log_of(folder), end="", flush=True)
        if not (stopped and stopped.number == signal.SIGTERM and told):
            print(error["message"], file=sys.stderr, flush=True)
        return stopped.exit_code if stopped else EXIT_CODES[error["code"]]
    finally:
        if folder is not None:
            work.close_work(root, folder)


def _tell_kept(who: str, places: Mapping[str, Path]) -> None:
    for name in kept.LABEL_MAPS:
        for line in kept.settle(places[name]) if name in places else []:
            print(f"{who}: {line}", file=sys.stderr, flush=True)


def _tell_success(who: str, record: dict) -> None:
    peak = f", {record['peak_rss_mib']:.0f} MiB" if record["peak_rss_mib"] else ""
    took = f" in {record['wall_s']:.1f} s{peak}" if record["wall_s"] else ""
    print(f"{who} done{took}", flush=True)
    if record["memory_remark"]:
        print(f"{who}: {record['memory_remark']}", file=sys.stderr, flush=True)


def _keep_failure(path: Path, record: dict, scan: str, settings: dict) -> None:
    """Write the record of a failed run. A disk that is full must not hide the error itself."""
    with contextlib.suppress(OSError):
        try:
            write_sealed(path, record)
        except (TypeError, ValueError):  # something in it is no JSON: the error must not be lost with it
            bare = child.new_record(record["kind"], scan, settings)
            write_sealed(path, {**bare, "error": record["error"], "finished": record["finished"]})
