"""Which device is used, for devices of every kind: good, incomplete, wrong, lying, crashing, hanging."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from synthseg_native.files import read_sealed
from synthseg_native.verification import probes, process, verify

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}


@pytest.fixture(autouse=True, scope="module")
def quick_formulas():
    """The probes, and what the formulas make of each, are made once; the largest network has a stand-in.

    Pretended devices compute with the formulas, so what is tested here is what is done with results. The formulas
    themselves are held against real runtimes, in processes of their own (`check_machine`).
    """
    known, made, formulas = {}, probes.probes(), dict(probes.FORMULAS)

    def stand_in(table, x, **_):
        return np.repeat(x[..., None], table[-1].channels, axis=-1)

    def remembered(name):
        def compute(x, **more):
            if id(x) not in known:
                formula = stand_in if name == "network" and x.size > 2**16 else formulas[name]
                known[id(x)] = formula(x=x, **more), x  # which thereby keeps its id
            return known[id(x)][0].copy()

        return compute

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "probes", lambda: made)
        for name in ("conv3d", "network"):
            patch.setitem(probes.FORMULAS, name, remembered(name))
        yield


class FakeDevice:
    """A device that computes with the formulas, but for what `change` does to a result."""

    def __init__(self, kind="cpu", change=None, description="", precisions=("float32",)):
        self.name, self.kind, self.description = f"{kind.upper()}:0", kind, description
        self.precisions, self.operations = list(precisions), None
        self.change = change or (lambda operation, result: result)
        self.asked = []

    def run(self, operation, inputs):
        self.asked.append(operation)
        result = self.change(operation, probes.FORMULAS[operation](**inputs))
        return result if isinstance(result, tuple) else (result, self.name)


def find(*devices):
    """What a runtime would report: these devices."""
    seen = [{name: getattr(d, name) for name in ("name", "kind", "description", "precisions")} for d in devices]
    return lambda: ({"runtime": "1.0"}, seen, list(devices))


def decide(*devices):
    finding = verify.verify("tensorflow", find(*devices))
    return finding["decision"], finding["probes"]


def bad(rows, device="GPU:0"):
    return {row["probe"]: row["error"] for row in rows if row["device"] == device and not row["ok"]}


def only(operation, then):
    return lambda asked, result: then(result) if asked == operation else result


def fail(message):
    raise RuntimeError(message)


# Decisions


@pytest.mark.slow
def test_a_cpu_alone():
    decision, rows = decide(FakeDevice())
    assert decision == {"device": "cpu", "reason": "CPU:0 passed every probe"}
    assert {row["compared_with"] for row in rows} == {"numpy"}
    names = " ".join(row["probe"] for row in rows)
    for operation in (
        "Conv3D",
        "MaxPool3D",
        "UpSampling3D",
        "ELU",
        "5-D",
        "fused",
        "softmax",
        "256x256 plane",
        "small network",
    ):
        assert operation in names


@pytest.mark.slow
def test_a_gpu_that_does_everything_is_used():
    decision, rows = decide(FakeDevice(), FakeDevice("gpu", description="Fast One"))
    assert decision == {"device": "gpu", "reason": "GPU:0 (Fast One) passed every probe"}
    assert {row["compared_with"] for row in rows if row["device"] == "GPU:0"} == {"cpu"}


def test_a_gpu_without_an_operation_is_recognised_but_not_used():
    gpu = FakeDevice("gpu", only("conv3d", lambda x: fail("No OpKernel\nregistered for Conv3D")), "METAL")
    decision, rows = decide(FakeDevice(), gpu)
    assert decision["device"] == "cpu"
    assert decision["reason"] == (
        "CPU:0 passed every probe; GPU:0 (METAL) recognised but not used: Conv3D and 1 more: No OpKernel"
    )
    assert bad(rows) == {"Conv3D": "No OpKernel", "Conv3D, 256x256 plane": "No OpKernel"}


def test_an_operation_that_the_engine_avoids_may_be_missing():
    gpu = FakeDevice("gpu", only("fused_batch_normalisation", lambda x: fail("5-D is not supported")))
    decision, rows = decide(FakeDevice(), gpu)
    assert decision["device"] == "gpu"
    assert list(bad(rows)) == ["batch normalisation, 5-D, fused"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda x: x + np.float32(1e-3), r"wrong numbers: off by 1\.0e-03"),
        (lambda x: x.astype(np.float16), "wrong numbers"),
        (lambda x: np.where(x > 1, np.nan, x), "not finite"),
        (lambda x: x[:, :-1], r"shape .* instead of"),
        (lambda x: (x, "CPU:0"), r"ran on CPU:0 instead"),
        (lambda x: None, r"shape \(\) instead of"),
        (lambda x: fail(""), "RuntimeError"),
    ],
)
def test_a_gpu_that_gives_something_else_is_not_used(change, error):
    decision, rows = decide(FakeDevice(), FakeDevice("gpu", only("conv3d", change)))
    assert decision["device"] == "cpu"
    for text in bad(rows).values():
        assert re.match(error, text)
    assert set(bad(rows)) == {"Conv3D", "Conv3D, 256x256 plane"}


def test_a_gpu_that_is_wrong_on_large_planes_only():
    def change(operation, result):
        return result * 0 if result.shape[-3:-1] == (256, 256) else result

    decision, rows = decide(FakeDevice(), FakeDevice("gpu", change))
    assert decision["device"] == "cpu"
    assert list(bad(rows)) == ["Conv3D, 256x256 plane", "network, 256x256 plane"]


def test_a_gpu_that_puts_large_slabs_together_wrongly():
    def change(operation, result):
        return np.roll(result, 1, axis=0) if operation == "network" and result.shape[1] == 256 else result

    decision, rows = decide(FakeDevice(), FakeDevice("gpu", change))
    assert decision["device"] == "cpu"
    assert list(bad(rows)) == ["network, 256x256 plane"]


# Precisions


def rough(off):
    """A change that spoils the network in bf16 only, where that is the second small network asked for."""
    small = []

    def change(operation, result):
        if operation == "network" and len(result) == 32:
            small.append(result)
            return result + np.float32(off) if len(small) == 2 else result
        return result

    return change


def precisions_of(*devices):
    finding = verify.verify("torch", find(*devices))
    return finding["precisions"], finding


def test_precisions_are_those_of_the_device_that_is_used():
    cpu, gpu = FakeDevice(precisions=["float32", "bf16"]), FakeDevice("gpu")
    found, finding = precisions_of(cpu, gpu)
    assert finding["decision"]["device"] == "gpu" and found == ["float32"]
    asked = {row["device"] for row in finding["probes"] if row["precision"] == "bf16"}
    assert asked == {"CPU:0"}  # a device is not asked for what it does not have
    assert precisions_of(cpu)[0] == ["float32", "bf16"]


def test_bf16_may_be_rough_but_not_wrong():
    both = ["float32", "bf16"]
    found, finding = precisions_of(FakeDevice(), FakeDevice("gpu", rough(0.02), precisions=both))
    assert found == both and finding["decision"]["device"] == "gpu"
    found, finding = precisions_of(FakeDevice(), FakeDevice("gpu", rough(0.2), precisions=both))
    assert found == ["float32"] and finding["decision"]["device"] == "gpu"  # float32 is sound
    assert re.match("wrong numbers", bad(finding["probes"])["small network, bf16"])


def test_a_gpu_that_dies_in_bf16_is_used_in_float32():
    calls = []

    def change(operation, result):
        calls.append(operation)
        if calls.count("network") == 3:
            raise probes.DeviceLost("the process died (SIGABRT)")
        return result

    found, finding = precisions_of(FakeDevice(), FakeDevice("gpu", change, precisions=["float32", "bf16"]))
    assert finding["decision"]["device"] == "gpu" and found == ["float32"]


def test_nothing_works_in_no_precision():
    broken = FakeDevice(change=lambda operation, result: fail("no"), precisions=["float32", "bf16"])
    assert precisions_of(broken)[0] == []


def test_a_gpu_that_is_lost_is_not_asked_again():
    def change(operation, result):
        if operation == "max_pool3d":
            raise probes.DeviceLost("the process died (SIGABRT)")
        return result

    gpu = FakeDevice("gpu", change)
    decision, rows = decide(FakeDevice(), gpu)
    assert decision["device"] == "cpu"
    assert gpu.asked == ["elu", "softmax", "max_pool3d"]
    assert bad(rows)["MaxPool3D"] == "the process died (SIGABRT)"
    assert bad(rows)["Conv3D"] == "not tried: the device was lost"


def test_a_broken_cpu_is_not_the_measure():
    decision, rows = decide(FakeDevice(change=only("elu", lambda x: x + 1)), FakeDevice("gpu"))
    assert decision["device"] == "gpu"
    assert {r["probe"]: r["compared_with"] for r in rows if r["device"] == "GPU:0"}["ELU"] == "numpy"
    assert list(bad(rows, "CPU:0")) == ["ELU"]


def test_nothing_works_is_told_not_raised(monkeypatch, tmp_path, capsys):
    everything_fails = FakeDevice(change=lambda operation, result: fail("illegal instruction"))
    monkeypatch.setattr(process, "find_devices", lambda runtime: find(everything_fails)())
    assert verify.main("tensorflow", tmp_path / "env" / "tensorflow.json") == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-2].startswith("device: none (CPU:0 recognised but not used: ELU and 9 more")
    assert out.splitlines()[-1] == "precisions: none"
    assert err.count("\n") == 1 and "no device works here" in err
    assert json.loads((tmp_path / "env" / "tensorflow.json").read_text())["decision"]["device"] is None


def test_what_the_choice_of_an_engine_has_just_found_is_taken_over(monkeypatch, tmp_path, capsys):
    found = {"schema": verify.SCHEMA, "environment": "llvm", "fingerprint": verify.fingerprint("llvm")}
    found |= {"machine": verify.machine(), "versions": {}, "devices": [], "probes": [], "precisions": ["float32"]}
    found["decision"] = {"device": "cpu", "reason": "of the choice"}
    beside = tmp_path / f"llvm-{found['fingerprint'][:8]}.json"
    verify.write(found, beside)
    # One of another day is the one to be made anew, never the one to be believed.
    verify.write(found | {"decision": {"device": "cpu", "reason": "of long ago"}}, tmp_path / "llvm.json")
    os.utime(tmp_path / "llvm.json", (0, 0))
    monkeypatch.setattr(
        verify, "verify", lambda environment: found | {"decision": {"device": None, "reason": "probed"}}
    )
    assert verify.main("llvm", tmp_path / "llvm.json") == 0
    assert json.loads((tmp_path / "llvm.json").read_text())["decision"]["reason"] == "of the choice"
    long_ago = beside.stat().st_mtime - verify.JUST_S - 1
    for path in tmp_path.glob("*.json"):
        os.utime(path, (long_ago, long_ago))
    assert verify.main("llvm", tmp_path / "llvm.json") == 1, "another day it is probed anew"
    verify.write(found | {"fingerprint": "0" * 16}, beside)
    assert verify.main("llvm", tmp_path / "llvm.json") == 1, "so it is on another machine"


def test_a_runtime_that_does_not_start_is_told_not_raised():
    finding = verify.verify("tensorflow", lambda: fail("TensorFlow does not start:\nno AVX"))
    assert finding["decision"] == {"device": None, "reason": "TensorFlow does not start: no AVX"}
    assert "device: none" in verify.table(finding)


# The formulas are the measure of everything: they must be right.


def test_convolution_formula():
    rng = np.random.default_rng(0)
    x, kernel, bias = rng.normal(size=(1, 5, 6, 7, 2)), rng.normal(size=(3, 3, 3, 2, 3)), rng.normal(size=3)
    expected = [
        sum(ndimage.correlate(x[0, ..., i], kernel[..., i, o], mode="constant") for i in range(2)) + bias[o]
        for o in range(3)
    ]
    result = probes.FORMULAS["conv3d"](x=x, kernel=kernel, bias=bias)
    np.testing.assert_allclose(result[0], np.stack(expected, -1), atol=1e-5)
    kernel = rng.normal(size=(3, 3, 3, 1, 2))
    expected = [ndimage.correlate(x[0, ..., i], kernel[..., 0, i], mode="constant") for i in range(2)]
    result = probes.FORMULAS["depthwise_conv3d"](x, kernel)
    np.testing.assert_allclose(result[0], np.stack(expected, -1), atol=1e-5)


def test_small_formulas():
    f = probes.FORMULAS
    line = np.arange(8.0).reshape(1, 2, 2, 2, 1)
    assert f["max_pool3d"](line).ravel() == [7]
    assert (f["max_pool3d"](f["up_sampling3d"](line)) == line).all()
    np.testing.assert_allclose(f["elu"](np.array([-1.0, 0.0, 2.0])), [np.exp(-1) - 1, 0, 2])
    np.testing.assert_allclose(f["softmax"](np.log(np.array([1.0, 3.0]))), [0.25, 0.75])
    np.testing.assert_allclose(f["batch_normalisation"](3.0, 1.0, 4 - 1e-3, 5.0, 2.0), 7)


# Real processes, a pretended TensorFlow


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """Write a module `tensorflow` that the devices' processes import."""

    def write(text):
        (tmp_path / "tensorflow.py").write_text("import os, signal, sys, time\n" + text)
        return verify.verify("tensorflow")

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(process, "START_S", 20)
    return write


def test_tensorflow_that_cannot_be_imported(pretended):
    decision = pretended("raise ImportError('libfoo.so: no such file')")["decision"]
    assert decision == {"device": None, "reason": "TensorFlow does not start: libfoo.so: no such file"}


def test_tensorflow_that_takes_the_process_down(pretended):
    code = "print('compiled to use AVX', file=sys.stderr, flush=True); os.kill(os.getpid(), signal.SIGILL)"
    assert pretended(code)["decision"]["reason"] == "the process died (SIGILL): compiled to use AVX"


@pytest.mark.slow
def test_tensorflow_that_hangs(pretended, monkeypatch):
    monkeypatch.setattr(process, "START_S", 3)
    assert pretended("time.sleep(600)")["decision"]["reason"] == "no answer within 3 s"


PRETENDED = """
from unittest.mock import MagicMock
__version__ = "2"
config, constant, device = MagicMock(), MagicMock(), MagicMock()
config.list_physical_devices = lambda kind: []
nn = MagicMock()
def elu(x): print("fatal"); sys.stdout.flush(); FAULT
nn.elu = elu
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "error"),
    [("os.abort()", "the process died (SIGABRT): fatal"), ("time.sleep(600)", "no answer within 3 s")],
)
def test_a_device_that_dies_or_hangs_in_a_probe(pretended, monkeypatch, fault, error):
    monkeypatch.setattr(process, "PROBE_S", 3)
    finding = pretended(PRETENDED.replace("FAULT", fault))
    assert finding["versions"]["tensorflow"] == "2"
    assert finding["probes"][0]["error"] == error
    assert finding["decision"]["device"] is None


# The finding, its fingerprint and its file


def test_the_finding_of_a_machine_is_always_the_same():
    both = [verify.verify("tensorflow", find(FakeDevice(), FakeDevice("gpu"))) for _ in range(2)]
    assert both[0] == both[1]
    assert both[0]["versions"]["runtime"] == "1.0"
    assert both[0]["devices"][1]["name"] == "GPU:0"


def test_fingerprint_needs_nothing_but_the_standard_library():
    code = "import sys; from synthseg_native.verification.verify import fingerprint; "
    code += "print(fingerprint('tensorflow'), 'numpy' in sys.modules)"
    done = subprocess.check_output([sys.executable, "-c", code], text=True, env=ENVIRONMENT)
    assert done.split() == [verify.fingerprint("tensorflow"), "False"]


def test_fingerprint_follows_the_machine_and_the_lock(monkeypatch):
    monkeypatch.setattr(verify, "memory_bytes", lambda: 16 * 2**30)
    first = verify.fingerprint("tensorflow")
    assert verify.fingerprint("workflow") != first
    changes = {
        "driver": lambda: "NVRM version: 999",
        "memory_bytes": lambda: 3 * 2**40,
        "_lock": lambda environment: "another",
    }
    for name, value in changes.items():
        with monkeypatch.context() as patch:
            patch.setattr(verify, name, value)
            assert verify.fingerprint("tensorflow") != first
    for name in ("system", "release", "machine"):
        with monkeypatch.context() as patch:
            patch.setattr(verify.platform, name, lambda: "another")
            assert verify.fingerprint("tensorflow") != first
    monkeypatch.setattr(verify, "memory_bytes", lambda: 16 * 2**30 - 2**20)
    assert verify.fingerprint("tensorflow") == first  # a new kernel may take a little for itself


def test_a_finding_counts_for_its_machine_only(tmp_path, monkeypatch):
    assert verify.ensure_verified("tensorflow", tmp_path) is None
    finding = verify.verify("tensorflow", find(FakeDevice()))
    verify.write(finding, tmp_path / "tensorflow.json")
    assert verify.ensure_verified("tensorflow", tmp_path) == finding
    monkeypatch.setattr(verify, "driver", lambda: "another node")
    assert verify.ensure_verified("tensorflow", tmp_path) is None
    finding = verify.verify("tensorflow", find(FakeDevice()))
    verify.write(finding, tmp_path / f"tensorflow-{verify.fingerprint('tensorflow')[:8]}.json")
    assert verify.ensure_verified("tensorflow", tmp_path) == finding
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_finding_or_one_of_an_older_schema_is_none(tmp_path):
    path = tmp_path / "tensorflow.json"
    path.write_text('{"fingerprint": ')
    assert verify.ensure_verified("tensorflow", tmp_path) is None
    finding = verify.verify("tensorflow", find(FakeDevice()))
    verify.write({**finding, "schema": 1}, path)
    assert verify.ensure_verified("tensorflow", tmp_path) is None


def test_table_is_aligned():
    gpu = FakeDevice("gpu", only("softmax", lambda x: fail("no kernel")))
    lines = verify.table(verify.verify("tensorflow", find(FakeDevice(), gpu))).splitlines()
    head = next(line for line in lines if line.startswith("device "))
    column = head.index("ok")
    assert {line[column:].split()[0] for line in lines if line.startswith(("CPU:0 ", "GPU:0 "))} == {"yes", "no"}
    assert next(line for line in lines if "no kernel" in line).startswith("GPU:0   softmax")


# The runtimes themselves


def check_machine(environment, python, folder, operations=None):
    """Verify an environment in its interpreter; its CPU must pass every probe."""
    out = folder / f"{environment}.json"
    command = [python, REPOSITORY / "scripts" / "verify_env.py", "--environment", environment, "--out", out]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    finding = read_sealed(out)
    assert finding == verify.ensure_verified(environment, folder)  # from another interpreter
    assert finding["decision"]["device"] in ("cpu", "gpu")
    assert {"llvm": "llvmlite"}.get(environment, environment) in finding["versions"]
    cpu = [row for row in finding["probes"] if row["device"] == "CPU:0"]
    precisions = next(device["precisions"] for device in finding["devices"] if device["name"] == "CPU:0")
    known = [probe for probe in probes.probes() if probe.operation in (operations or probes.FORMULAS)]
    assert [row["probe"] for row in cpu] == [probe.name for probe in known if probe.precision in precisions]
    assert all(row["ok"] for row in cpu), cpu
    assert all(row["max_difference"] < 3e-5 for row in cpu if row["precision"] == "float32"), cpu
    return finding


@pytest.mark.slow
def test_tensorflow_on_this_machine(tensorflow_python, tmp_path):
    assert check_machine("tensorflow", tensorflow_python, tmp_path)["precisions"] == ["float32"]


@pytest.mark.slow
def test_llvm_on_this_machine(llvm_python, tmp_path):
    finding = check_machine("llvm", llvm_python, tmp_path, operations=["network"])
    assert finding["decision"]["device"] == "cpu" and len(finding["devices"]) == 1
    assert finding["precisions"] == ["float32"] and len(finding["probes"]) == 2


@pytest.mark.slow
def test_torch_on_this_machine(torch_python, tmp_path):
    finding = check_machine("torch", torch_python, tmp_path)
    gpus = [device for device in finding["devices"] if device["kind"] == "gpu"]
    asked = {row["device"] for row in finding["probes"]}
    assert asked == {"CPU:0", "GPU:0"} if gpus else {"CPU:0"}
    if finding["decision"]["device"] == "gpu":
        gpu = [row for row in finding["probes"] if row["device"] == "GPU:0" and row["needed"]]
        assert all(row["ok"] and row["ran_on"] == "GPU:0" for row in gpu)


MISSING_GPU = """
from synthseg_native.verification import probes, process as verify_process
runtime = "{}"
gpu = verify_process.ProcessDevice(runtime, "GPU:0", "gpu")
try:
    seen = gpu.start()[1]
    if len(seen) == 1:
        rows = probes.examine(gpu, {{}})
        assert len(rows) == len(probes.probes()) - 1 and not any(row["ok"] for row in rows), rows
        print(rows[0]["error"])
finally:
    gpu.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["tensorflow", "torch"])
def test_a_missing_gpu_is_not_the_cpu_unseen(environment, request):
    python = request.getfixturevalue(f"{environment}_python")
    command = [python, "-c", MISSING_GPU.format(environment)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_of_processes_that_ask_at_once_one_verifies(tmp_path, monkeypatch):
    calls, found = [], {"schema": verify.SCHEMA, "fingerprint": verify.fingerprint("llvm")}
    found |= {"machine": verify.machine(), "versions": {}, "probes": [], "precisions": []}

    def slow(environment):
        calls.append(environment)
        time.sleep(0.3)
        return found | {"decision": {"device": "cpu", "reason": "it passed"}}

    monkeypatch.setattr(verify, "verify", slow)
    mark = verify.fingerprint("llvm")[:8]
    outs = [tmp_path / f"llvm-{mark}.json"] * 3
    asking = [threading.Thread(target=verify.main, args=("llvm", out)) for out in outs]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert calls == ["llvm"] and all(out.exists() for out in outs)
