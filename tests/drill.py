"""Random faults at random moments, by hand: does a call after them leave the results of a call without them?

    .envs/dev-*/bin/python tests/drill.py --rounds 200 --seed 1

A small cohort of its own (three heads, the quickest engine, a comparison with existing label maps) is run once without
a fault for each state of its inputs; that says what is right. Each round then makes something stale, starts the
workflow, does one of the faults below at a random moment, waits for the end, and makes one plain call. After it every
row has the numbers of the undisturbed run, by the hash of its label map and by every column that is no time, or says
why not; the files below results/ are those of the undisturbed run; no process is left. What is not so is printed with
the number of its round, and the exit status is 1. The same seed does the same, but for the moments, which are the
machine's.
"""

import argparse
import contextlib
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent / "workflow"))
sys.path.insert(0, str(Path(__file__).parent))
from project import ENGINE, Project, write_image

from processes import hear_ctrl_c

SCANS = ("01", "02", "03")
LONGEST_S = 240  # a call of this cohort takes 10 to 30 s; beyond this it hangs
ENDS_WITHIN_S = 30  # after a signal to the call
CONFIG = {"reference": {"kind": "existing", "pattern": "maps/{participant_id}.nii.gz"}, "mode": "fast"}
ALONE = {**CONFIG, "reference": {"runtime": "none"}}
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGKILL")
# Columns of summary.tsv that tell of the run and not of its result.
OF_THE_RUN = ("native_wall_s", "reference_wall_s", "native_peak_rss_mib", "reference_peak_rss_mib")
DISK_MIB = 48
KEPT = ".nii.gz.kept"


class Drill:
    """The cohort, what is right for each state of its inputs, and one round after another."""

    def __init__(self, folder: Path, seed: int):
        self.random = random.Random(seed)
        self.project = Project.create(folder / "cohort", SCANS, **CONFIG)
        self.folder = self.project.folder
        self.results = self.folder / "results"
        (self.folder / "tmp").mkdir()
        self.own_disk = self._mount()
        self.variant = dict.fromkeys(SCANS, 0)
        (self.folder / "variants").mkdir()
        for number, scan in enumerate(SCANS):
            for variant in (0, 1):
                write_image(self.folder / f"variants/{scan}-{variant}.nii", seed=10 * number + variant)
            self._put(scan, 0)
        self.right: dict[str, dict] = {}  # scan-variant -> its row without a fault
        self.listing: set[str] = set()
        self.faults = [getattr(self, name) for name in dir(self) if name.startswith("fault_")]
        if not self.own_disk:
            self.faults.remove(self.fault_full_disk)

    def _mount(self) -> bool:
        """A small disk for the results, where this user may have one."""
        self.results.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(self.results)]
        return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0

    def close(self) -> None:
        if self.own_disk:
            subprocess.run(["umount", "-l", str(self.results)])

    def _put(self, scan: str, variant: int) -> None:
        """Replace an image, as rsync does: beside its place, then renamed."""
        beside = self.project.image(scan).with_suffix(".part")
        shutil.copy2(self.folder / f"variants/{scan}-{variant}.nii", beside)
        beside.rename(self.project.image(scan))
        self.variant[scan] = variant

    # --- calls --------------------------------------------------------------------------------------------------------

    def start(self) -> subprocess.Popen:
        command = ["sh", "scripts/launch.sh", "snakemake", "--configfile", "config.json", "--cores", "2"]
        variables = {name: value for name, value in os.environ.items() if not name.startswith("SYNTHSEG_NATIVE")}
        return subprocess.Popen(
            [*command, "results/summary.tsv"],
            cwd=self.folder,
            env=variables | {"TMPDIR": str(self.folder / "tmp")},
            stdout=(self.folder / "said").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=hear_ctrl_c,  # in a shell's background SIGINT would be ignored, and these rounds try nothing
        )

    def said(self) -> str:
        return (self.folder / "said").read_text(errors="replace")

    def plain_call(self) -> int:
        """One call without a fault; its exit status, None where it did not end."""
        process = self.start()
        try:
            return process.wait(LONGEST_S)
        except subprocess.TimeoutExpired:
            self.kill(self.processes())
            process.wait()
            return None

    def processes(self) -> list[psutil.Process]:
        """All that works in the cohort's folder."""
        place, found = os.path.realpath(self.folder), []
        for process in psutil.process_iter(["cwd", "status"]):
            if (process.info["cwd"] or "").startswith(place) and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    @staticmethod
    def kill(processes: list[psutil.Process], number: int = signal.SIGKILL) -> None:
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    # --- faults: each is done once, while a call runs -----------------------------------------------------------------

    def fault_signal_to_the_call(self, process: subprocess.Popen) -> str:
        name = self.random.choice(SIGNALS)
        process.send_signal(getattr(signal, name))
        return f"{name} to the call"

    def fault_signal_to_one_process(self, process: subprocess.Popen) -> str:
        name, found = self.random.choice(SIGNALS), self.processes()
        if not found:
            return "no process to kill"
        victim = self.random.choice(found)
        what = " ".join(victim.cmdline()[:4])[-60:] if victim.is_running() else "?"
        self.kill([victim], getattr(signal, name))
        return f"{name} to one process ({what})"

    def fault_kill_all(self, process: subprocess.Popen) -> str:
        self.kill(self.processes())
        return "SIGKILL to all processes"

    def fault_ctrl_c(self, process: subprocess.Popen) -> str:
        times = self.random.choice((1, 1, 2, 3))
        for _ in range(times):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.3)
        return f"Ctrl-C, {times} times"

    def fault_full_disk(self, process: subprocess.Popen) -> str:
        filler, seconds = self.results / ".filler", self.random.uniform(0.5, 6)
        with contextlib.suppress(OSError), filler.open("wb") as stream:
            while True:
                stream.write(b"\0" * 65536)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        filler.unlink(missing_ok=True)
        return f"the disk of the results full for {seconds:.1f} s"

    def _some_result(self) -> Path | None:
        found = [path for path in self.results.rglob("*") if path.is_file() and path.name != ".filler"]
        return self.random.choice(sorted(found)) if found else None

    def fault_damaged_file(self, process: subprocess.Popen) -> str:
        path, how = self._some_result(), self.random.choice(("cut", "emptied", "garbage", "longer", "gone", "a folder"))
        if path is None:
            return "nothing to damage"
        with contextlib.suppress(OSError):
            size = path.stat().st_size
            if how == "cut":
                os.truncate(path, size // 2)
            elif how == "emptied":
                os.truncate(path, 0)
            elif how == "garbage":
                path.write_bytes(self.random.randbytes(size))
            elif how == "longer":
                with path.open("ab") as stream:
                    stream.write(b"more")
            else:
                path.unlink()
                if how == "a folder":
                    path.mkdir()
        return f"{path.relative_to(self.results)}: {how}"

    def fault_exchanged_files(self, process: subprocess.Popen) -> str:
        path = self._some_result()
        if path is None or "sub-0" not in path.name:
            return "nothing to exchange"
        scan, other = path.name[4:6], self.random.choice(SCANS)
        second = Path(str(path).replace(f"sub-{scan}", f"sub-{other}"))
        with contextlib.suppress(OSError):
            aside = path.with_name(f"aside-{path.name}")
            path.rename(aside)
            second.rename(path)
            aside.rename(second)
        for left in self.results.rglob("aside-*"):
            left.unlink()
        return f"{path.name} and {other}'s exchanged"

    def fault_changed_image(self, process: subprocess.Popen) -> str:
        scan = self.random.choice(SCANS)
        self._put(scan, 1 - self.variant[scan])
        return f"another image of {scan}"

    def fault_image_there_and_back(self, process: subprocess.Popen) -> str:
        scan, seconds = self.random.choice(SCANS), self.random.uniform(0.1, 3)
        self._put(scan, 1 - self.variant[scan])
        time.sleep(seconds)
        self._put(scan, 1 - self.variant[scan])
        return f"another image of {scan} for {seconds:.1f} s"

    def fault_turned_clock(self, process: subprocess.Popen) -> str:
        days, path = self.random.choice((-400, -1, 1, 400)), self._some_result()
        paths = [self.project.image(self.random.choice(SCANS)), *([path] if path else [])]
        for path in paths:
            with contextlib.suppress(OSError):
                os.utime(path, (time.time() + 86400 * days,) * 2)
        return f"{paths[-1].name} and an image dated {days} days from now"

    # --- a round ------------------------------------------------------------------------------------------------------

    def learn(self) -> None:
        """The rows of every state of the inputs, and which files there are, from calls without a fault."""
        maps = self.folder / "maps"
        maps.mkdir()
        self.project.configure(**ALONE)
        assert self.plain_call() == 0, self.said()
        for scan in SCANS:  # to compare with: the first variant's own
            shutil.copy(self.project.label_map(scan), maps / f"sub-{scan}.nii.gz")
        self.project.configure(
            **{**CONFIG, "reference": {"kind": "existing", "pattern": "maps/{participant_id}.nii.gz"}}
        )
        for variant in (1, 0):
            for scan in SCANS:
                self._put(scan, variant)
            assert self.plain_call() == 0, self.said()
            for scan, row in zip(SCANS, self.rows(), strict=True):
                assert row["status"] == "ok", row
                self.right[f"{scan}-{variant}"] = row
        self.listing = self.files()

    def rows(self) -> list[dict]:
        with (self.results / "summary.tsv").open(encoding="utf-8", newline="") as file:
            return [
                {k: v for k, v in row.items() if k not in OF_THE_RUN} for row in csv.DictReader(file, delimiter="\t")
            ]

    def files(self) -> set[str]:
        """What lies below results/, but for logs and what a call leaves for the next one under names of its own."""
        found = {path.relative_to(self.results).as_posix() for path in self.results.rglob("*") if path.is_file()}
        kept = ("logs/", ".state/manifest-", ".state/failed/")
        names = {name for name in found if not name.startswith(kept) and name != ".state/last_run_failed"}
        return {name for name in names if KEPT not in name}  # label maps that nothing vouched for, which a line names

    def disturb(self) -> str:
        """Make something stale, start a call, do a fault; what was done."""
        scan = self.random.choice(SCANS)
        if self.random.random() < 0.5:
            self._put(scan, 1 - self.variant[scan])
            stale = f"another image of {scan}"
        else:
            stale = f"label map of {scan} deleted"
            self.project.label_map(scan).unlink(missing_ok=True)
        process, moment = self.start(), self.random.uniform(0, 14)
        begin = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        ended = " (the call had ended)" if process.poll() is not None else ""
        fault = self.random.choice(self.faults)
        what = fault(process)
        done = f"{stale}; after {time.monotonic() - begin:.1f} s{ended}: {what}"
        try:
            process.wait(ENDS_WITHIN_S if fault in (self.fault_signal_to_the_call, self.fault_ctrl_c) else LONGEST_S)
        except subprocess.TimeoutExpired:
            self.kill(self.processes())
            process.wait()
            return f"{done}: IT HUNG"
        if not what.startswith(("SIGKILL", "SIGHUP", "SIGQUIT")):
            time.sleep(1)
            if left := [" ".join(one.cmdline()[:4])[-60:] for one in self.processes()]:
                done += f": LEFT BEHIND {left}"
        psutil.wait_procs(self.processes(), timeout=60)  # what a SIGKILL of its parent left finishes by itself
        if "Traceback (most recent call last)" in self.said() and "SIGKILL" not in what:
            done += ": A TRACEBACK"
        return done

    def judge(self) -> list[str]:
        """What is wrong after a plain call; nothing where all is as it should be."""
        status, wrong = self.plain_call(), []
        if status is None:
            return ["the call after it hangs"]
        try:
            rows = self.rows()
        except OSError as error:
            return [f"no summary ({error}), exit status {status}: {self.said()[-300:]}"]
        for scan, row in zip(SCANS, rows, strict=True):
            right = self.right[f"{scan}-{self.variant[scan]}"]
            if row["status"] == "ok":
                differing = [name for name in right if row[name] != right[name]]
                # An edited reference, or one that failed, is said and leaves the native row alone.
                if differing and not (row["error"] != "n/a" or "edited" in row["verdict_reason"]):
                    wrong.append(f"{scan}: ok, but other {', '.join(f'{n}={row[n]}' for n in differing[:4])}")
            elif row["error"] == row["state_reason"] == "n/a":
                wrong.append(f"{scan}: {row['status']} without a reason")
            elif row["status"] not in ("edited", "failed"):
                wrong.append(f"{scan}: {row['status']}: {row['state_reason']} after a plain call")
        good = all(row["status"] == "ok" for row in rows)
        if good and status != 0:
            wrong.append(f"all rows are ok, but exit status {status}: {self.said()[-300:]}")
        if more := self.files() - self.listing:
            wrong.append(f"lie about: {sorted(more)[:4]}")
        if good and (lacking := self.listing - self.files()):
            wrong.append(f"lacking: {sorted(lacking)[:4]}")
        if left := self.processes():
            wrong.append(f"{len(left)} processes left")
        if "Traceback (most recent call last)" in self.said():
            wrong.append("a traceback in the plain call")
        return wrong

    def repair(self) -> None:
        """Away with what a person would have to decide about: edited label maps, folders in the place of files."""
        for path in self.results.rglob(f"*{KEPT}*"):
            path.unlink()
        for path in self.results.rglob("*"):
            if path.is_dir() and "." in path.name and not path.name.startswith("."):
                shutil.rmtree(path)
        for engine in (ENGINE, "reference"):
            for row, scan in zip(self.rows(), SCANS, strict=True):
                if row["status"] != "ok" or row["verdict"] != self.right[f"{scan}-{self.variant[scan]}"]["verdict"]:
                    shutil.rmtree(self.results / engine / f"sub-{scan}", ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for the cohort (default: a temporary one)")
    arguments = parser.parse_args(argv)
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="drill-"))
    drill, bad = Drill(folder, arguments.seed), 0
    try:
        begin = time.monotonic()
        drill.learn()
        print(f"seed {arguments.seed}; without a fault: {time.monotonic() - begin:.0f} s, {len(drill.listing)} files")
        for number in range(1, arguments.rounds + 1):
            done = drill.disturb()
            shutil.copy(drill.folder / "said", folder / f"said-{number}")
            wrong = drill.judge()
            fault = bool(wrong) or any(word in done for word in ("HUNG", "LEFT BEHIND", "TRACEBACK"))
            bad += fault
            print(f"{number}: {done}: {'; '.join(wrong) or 'as it should be'}", flush=True)
            if fault:
                shutil.copy(drill.folder / "said", folder / f"said-{number}-after")
            else:
                (folder / f"said-{number}").unlink()
            drill.repair()
    finally:
        drill.kill(drill.processes())
        drill.close()
    print(f"seed {arguments.seed}: {arguments.rounds} rounds, {bad} not as they should be ({folder})")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
