"""make prove: what stands on its page, what does not, and how it ends. The engines are stand-ins here."""

import getpass
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/golden"))

import parts  # noqa: E402
import prove  # noqa: E402
from synthseg_native.cohort import environments  # noqa: E402
from synthseg_native.errors import SynthSegError  # noqa: E402

FINDING = {
    "machine": {"system": "Darwin", "release": "25.2.0", "arch": "arm64", "cpu": "Apple M1", "cpus": 8,
                "memory_gib": 16},
    "versions": {"torch": "2.15.0"},
    "probes": [{"device": "GPU:0", "probe": "Conv3D", "ran_on": None, "ok": False, "needed": True,
                "max_difference": None, "error": "Conv3D is not supported on MPS"}],
    "decision": {"device": "gpu", "reason": "GPU:0 (Apple GPU) passed every probe"},
    "precisions": ["float32"],
}  # fmt: skip
HOME = f"{Path.home()}/data/head.nii: it went wrong, says {getpass.getuser()} on {socket.gethostname()}"


@pytest.fixture
def proves(monkeypatch, tmp_path):
    """A function that runs make prove with a finding, a golden result, and tests that end with a status."""

    def run(
        *words,
        device="gpu",
        result=(["0 of 9", "identical", "1.0", "200", "300", "0.5"], True),
        outcome=None,
        slab=0.25,
    ):
        def seconds(engine, device, precision):
            if isinstance(slab, str):
                raise SynthSegError("internal", slab)
            return slab

        def verified(engine, folder):
            here = "cpu" if device == "gpu" and engine == "llvm" else device
            return FINDING | {"decision": {"device": here, "reason": "why"}}

        monkeypatch.setattr(prove.ranking, "verified", verified)
        monkeypatch.setattr(prove.ranking, "timed", seconds)
        monkeypatch.setattr(prove, "segmented", lambda *_: result)
        monkeypatch.setattr(prove, "run_tests", lambda words, report: outcome or parts.Outcome("7 tests passed"))
        page = tmp_path / "build/page.md"
        status = prove.main([*words, "--page", str(page)])
        return status, page.read_text()

    return run


def test_the_page_has_each_engine_on_each_device_that_is_sound(proves, capsys):
    status, page = proves("--engines", "llvm", "torch")
    assert status == 0
    assert len([line for line in page.splitlines() if line.startswith("| llvm | cpu | `")]) == len(prove.CASES) + 1
    for device in ("cpu", "gpu"):
        assert f"| torch | {device} | `t1_crop` | 0 of 9 | identical | 1.0 | 200 | 300 |" in page
        assert f"| torch | {device} | 0.25 |" in page
    assert "Conv3D is not supported on MPS" in page and "7 tests passed" in page
    assert "send it as it is" in capsys.readouterr().out


def test_of_parts_only_those_are_there(proves):
    _, page = proves("--engines", "llvm", "--parts", "speed", device="cpu")
    assert "| llvm | cpu | 0.25 |" in page and "Golden" not in page and "quick tests" not in page


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"result": (["", "failed: no memory", "", "", "", ""], False)}, "failed: no memory"),
        (
            {"outcome": parts.Outcome("failed: 1 of 7 tests", [f"test_a::test_b: {HOME}"])},
            "- `test_a::test_b: HOME/data",
        ),
        ({"slab": "does not run here: no"}, "| llvm | cpu | does not run here: no |"),
        ({"device": None}, "device: none (why)"),
    ],
)
def test_what_fails_stands_in_the_page_and_makes_the_status_1(proves, given, says):
    status, page = proves("--engines", "llvm", **{"device": "cpu"} | given)
    assert status == 1 and says in page


def test_an_environment_that_cannot_be_made_is_no_obstacle(proves, monkeypatch):
    def fails(engine, folder):
        raise environments.SetupError(f"the {engine} environment could not be made: no network")

    def without(*words):
        monkeypatch.setattr(prove.ranking, "verified", fails)
        monkeypatch.setattr(prove, "segmented", lambda *_: pytest.fail("it has no environment"))
        return original(*words)

    original = prove.prove
    monkeypatch.setattr(prove, "prove", without)
    status, page = proves("--engines", "torch", "--parts", "golden")
    assert status == 1 and "the torch environment could not be made: no network" in page


def test_no_name_of_a_person_machine_or_folder_is_on_the_page(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "jane")
    monkeypatch.setattr(socket, "gethostname", lambda: "janes-mac.local")
    monkeypatch.setenv("HOME", "/Users/jane")
    text = f"/Users/jane/a {ROOT}/b of jane on janes-mac.local, janes-mac; pytest-of-jane/x, janet, mac"
    assert prove.without_names(text) == "HOME/a PROJECT/b of USER on HOST, HOST; pytest-of-jane/x, janet, mac".replace(
        "of-jane", "of-USER"
    )
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    assert prove.without_names("the root of it") == "the root of it"


@pytest.mark.parametrize(("gpu", "there", "engines"), [(None, (), ["llvm"]), ("Apple", (), ["llvm", "torch"]),
                                                       (None, ("tensorflow",), ["tensorflow", "llvm"])])  # fmt: skip
def test_which_engines_are_proved(monkeypatch, tmp_path, gpu, there, engines):
    monkeypatch.setattr(environments, "gpu", lambda: gpu)
    monkeypatch.setattr(environments, "python", lambda name: tmp_path / ("" if name in there else "none"))
    assert sorted(prove.wanted()) == sorted(engines)


def test_a_golden_case_is_run_by_the_whole_command_and_measured(monkeypatch, tmp_path):
    """What the command writes is the golden result itself, but for one voxel of it."""
    program = f"""
import json, sys, nibabel as nib, numpy as np
given = dict(zip(sys.argv, sys.argv[1:]))
golden = nib.load("{prove.GOLDEN}/t1_crop_dseg.nii.gz")
labels = np.asarray(golden.dataobj).copy()
labels[tuple(np.argwhere(labels)[0])] = 0
nib.save(nib.Nifti1Image(labels, golden.affine), given["--o"])
nib.save(nib.Nifti1Image(np.zeros(labels.shape, np.float32), golden.affine), given["--margin"])
assert given["--engine"] == "torch" and given["--device"] == "gpu" and given["--crop"] == "64"
open(given["--record"], "w").write(json.dumps({{"seconds": {{"network": 0.5}}}}))
class torch:
    class cuda:
        is_available, max_memory_reserved = lambda: True, lambda: 7 << 20
sys.modules["torch"] = torch
main = lambda: 0
"""
    (tmp_path / "synthseg_native").mkdir()
    cli = tmp_path / "synthseg_native/cli.py"
    cli.write_text(program)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(environments, "python", lambda name: python)
    case = prove.golden("t1_crop")
    (differ, verdict, seconds, peak, *more), good = prove.segmented("torch", "gpu", case, tmp_path / "first")
    assert differ.startswith("1 of ") and float(seconds) > 0 and float(peak) > 10 and more == ["7", "0.5"]
    assert (verdict, good) == ("equivalent", True) or verdict.startswith("different")
    cli.write_text("raise SystemExit('synthseg-native: no memory | none')")
    assert prove.segmented("torch", "gpu", case, tmp_path / "again") == (
        ["", "failed: synthseg-native: no memory / none", *[""] * 4],
        False,
    )


def test_a_scan_of_full_size_is_told_in_one_row_to_send_back(proves, tmp_path, monkeypatch):
    monkeypatch.setattr(prove, "full", lambda size, first: None)
    monkeypatch.setattr("pathlib.Path.rename", lambda self, other: other.touch())
    monkeypatch.setattr(prove.verify, "table", lambda finding: "device: gpu (GPU:0 (Some GPU) passed every probe)")
    status, page = proves("--engines", "llvm", "torch", "--parts", "golden", "full", "--device", "gpu")
    cells = "Some GPU | torch on the gpu | 4 of 4 | 1.0 | 0.5 | 200 | 300 | 0 of 9 (identical, llvm on the cpu)"
    assert status == 0 and f"| {cells} |" in page and "| llvm | cpu | `" not in page
    status, page = proves("--engines", "torch", "--parts", "golden", "--device", "gpu", device="cpu")
    assert status == 1 and "Golden" not in page


def test_one_interpreter_can_stand_for_every_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "ENVS", environments.ENVS)
    monkeypatch.setenv("PYTHONPATH", "/more")
    prove.lend(Path(sys.executable), tmp_path)
    done = subprocess.run([environments.ensure("torch"), "-c", "import sys; print(sys.path, sys.executable)"],
                          env={"PYTHONPATH": "/mine"}, capture_output=True, text=True)  # fmt: skip
    assert "'/more', '/mine'" in done.stdout and sys.executable in done.stdout


@pytest.mark.slow
def test_what_pytest_found_is_told(tmp_path, monkeypatch):
    report = tmp_path / "report.xml"
    file = tmp_path / "test_it.py"
    file.write_text("def test_a(): print('t1_crop: 2 of 30 foreground voxels differ')\ndef test_b(): assert 1 == 2\n"
                    "import pytest\n@pytest.mark.skip\ndef test_c(): pass\n")  # fmt: skip
    found = parts.run_tests([str(file), "--rootdir", str(tmp_path)], report)
    assert found.words == "failed: 1 of 3 tests" and found.golden == [("t1_crop", "2", "30")]
    (line,) = found.failed
    assert "test_b" in line and "assert 1 == 2" in line
    found = parts.run_tests([str(file), "-k", "not test_b", "--rootdir", str(tmp_path)], report)
    assert (found.words, found.failed) == ("1 tests passed, 1 skipped", [])
    assert parts.run_tests(["--no-such-word"], report).words.startswith("failed: pytest ended")


def test_make_prove_is_this_program():
    done = subprocess.run(["make", "-n", "prove"], cwd=ROOT, capture_output=True, text=True)
    assert "tests/prove.py" in done.stdout and "ensure dev llvm" in done.stdout


@pytest.mark.parametrize(
    ("python", "says"),
    [
        ("nowhere", "nowhere: no such Python: set PYTHON"),
        (sys.executable, "has no PyTorch: set PYTHON to one that has"),
    ],
)
def test_the_check_of_a_gpu_says_what_is_missing(python, says):
    command, env = [ROOT / "benchmarks/device_check.sh"], {"PATH": "/usr/bin:/bin", "PYTHON": python}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1
