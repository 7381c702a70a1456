"""engine: auto. The ranking of each platform, what drops a candidate, and that only the user changes a choice."""

import importlib.util
import json
import platform
import sys

import pytest

from synthseg_native import cli, options
from synthseg_native.cohort import environments, ranking
from synthseg_native.engines import NAMES
from synthseg_native.errors import SynthSegError
from synthseg_native.files import sealed
from synthseg_native.verification import verify

LINUX, MAC, ARM = ("Linux", "x86_64"), ("Darwin", "arm64"), ("Linux", "aarch64")
CPU, GPU, NOTHING = "cpu", "gpu", None


class Machine:
    """A platform with or without a GPU; `devices`: what the verification of each engine's environment decides.

    bf16: whether the devices compute in it.
    """

    def __init__(self, monkeypatch, system=LINUX, gpu=None, bf16=True, **devices):
        self.bf16 = bf16
        self.devices = dict.fromkeys(NAMES, CPU) | devices
        self.looked_at, self.said = [], []
        monkeypatch.setattr(platform, "system", lambda: system[0])
        monkeypatch.setattr(environments, "machine", lambda: system[1])
        monkeypatch.setattr(environments, "gpu", lambda: gpu)
        monkeypatch.setattr(ranking, "verified", self.verified)

    def verified(self, engine, folder, log=None):
        self.looked_at.append(engine)
        if self.devices[engine] == "no network":
            raise environments.SetupError(f"the {engine} environment could not be made: no network")
        device = self.devices[engine]
        decision = {"device": device, "reason": "passed every probe" if device else "Conv3D: wrong numbers"}
        return {"precisions": ["float32", "bf16"][: 1 + self.bf16], "decision": decision}

    def choose(self, **asked):
        return ranking.choose("folder", **asked, log=self.said.append)


@pytest.mark.parametrize(
    ("system", "gpu", "devices", "engine", "device"),
    [
        (LINUX, "NVIDIA", {"torch": GPU}, "torch", GPU),
        (LINUX, "NVIDIA", {"torch": CPU}, "llvm", CPU),  # the GPU is seen, and fails a probe
        (LINUX, None, {}, "llvm", CPU),
        (LINUX, None, {"llvm": NOTHING}, "tensorflow", CPU),
        (MAC, "Apple", {"torch": GPU}, "torch", GPU),
        (MAC, "Apple", {}, "tensorflow", CPU),
        (MAC, "Apple", {"torch": NOTHING, "tensorflow": NOTHING}, "llvm", CPU),
        (ARM, None, {}, "tensorflow", CPU),
        (ARM, "NVIDIA", {"torch": GPU}, "torch", GPU),
        (("FreeBSD", "riscv64"), None, {}, "tensorflow", CPU),
    ],
)
def test_the_best_engine_that_works_is_taken(monkeypatch, system, gpu, devices, engine, device):
    machine = Machine(monkeypatch, system, gpu, **devices)
    found = machine.choose()
    assert (found["engine"], found["device"]) == (engine, device)
    outcomes = {row["engine"]: row["outcome"] for row in found["ranking"]}
    assert outcomes[engine] == "chosen: passed every probe" and all(outcomes.values())
    assert machine.looked_at[-1] == engine, "no environment is made for nothing"
    assert any(f"engine auto: {engine} on the {device.upper()}: chosen" in line for line in machine.said)
    json.dumps(found, allow_nan=False)


def test_what_was_dropped_says_why(monkeypatch):
    rows = Machine(monkeypatch, llvm=NOTHING).choose()["ranking"]
    assert [row["outcome"] for row in rows] == [
        "torch: no NVIDIA or Apple GPU is seen on this machine",
        "Conv3D: wrong numbers",
        "chosen: passed every probe",
    ]


def test_precision_and_device_filter_the_ranking(monkeypatch):
    machine = Machine(monkeypatch, MAC, "Apple", torch=GPU)
    assert machine.choose(device="cpu")["engine"] == "tensorflow"
    assert machine.choose(device="gpu", precision="bf16")["engine"] == "torch"
    with pytest.raises(SynthSegError, match="engine auto: none works here with bf16 on device auto: name one"):
        (machine := Machine(monkeypatch, gpu="NVIDIA", bf16=False, torch=GPU)).choose(precision="bf16")
    assert "torch on the GPU: passed every probe, but not in bf16" in machine.said[-1]
    machine = Machine(monkeypatch, LINUX, "NVIDIA")
    with pytest.raises(SynthSegError, match="engine auto: none works here with float32 on device gpu: name one"):
        machine.choose(device="gpu")


def test_other_environments_are_made_along_with_the_candidate_s(monkeypatch):
    made = []
    monkeypatch.setattr(environments, "ensure_all", lambda names, log: made.append(list(names)))
    machine = Machine(monkeypatch, llvm=NOTHING)
    ranking.choose("folder", log=machine.said.append, beside=["tensorflow", "demo"])
    assert made[0] == ["llvm", "tensorflow", "demo"] and machine.looked_at == ["llvm", "tensorflow"]


# --- once per results folder -----------------------------------------------------------------------------------------


@pytest.fixture
def of_results(tmp_path):
    def engine(looking=False, precision="float32"):
        said = []
        found = ranking.of_results(tmp_path / "engine.json", "env", precision, "auto", looking, said.append)
        return found, said

    return engine


def test_a_choice_stays_until_the_user_changes_it(monkeypatch, of_results, tmp_path):
    machine = Machine(monkeypatch)
    assert of_results()[0] == "llvm"
    written = (tmp_path / "engine.json").read_bytes()
    machine = Machine(monkeypatch, llvm=NOTHING)
    assert of_results() == ("llvm", []) and machine.looked_at == []
    monkeypatch.setattr(ranking.record, "machine", lambda: {"cpu": "another", "system": "Linux"})
    engine, said = of_results()
    assert engine == "llvm" and len(said) == 1
    assert "llvm was chosen on" in said[0] and "delete it to choose anew" in said[0]
    assert (tmp_path / "engine.json").read_bytes() == written
    (tmp_path / "engine.json").unlink()
    assert of_results()[0] == "tensorflow"


def test_a_choice_of_an_engine_that_is_no_more_goes_on_with_what_took_its_place(monkeypatch, of_results, tmp_path):
    machine = Machine(monkeypatch)
    (tmp_path / "engine.json").write_text(json.dumps({"engine": "openvino", "machine": ranking.record.machine()}))
    engine, said = of_results(looking=True)
    assert engine == "llvm" and "openvino is no more, llvm took its place: its runs are made anew" in said[0]
    assert of_results()[0] == "llvm" and machine.looked_at == []
    assert of_results() == ("llvm", [])  # said once


def test_a_dry_run_chooses_nothing(monkeypatch, of_results, tmp_path):
    machine = Machine(monkeypatch)
    engine, said = of_results(looking=True)
    assert engine == "llvm" and "chosen when the workflow runs" in said[0]
    assert machine.looked_at == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[]", '{"engine": "abacus"}', '{"engine": ["llvm"]}'])
def test_a_file_that_names_no_engine_is_said_and_made_anew(monkeypatch, of_results, tmp_path, content):
    Machine(monkeypatch)
    (tmp_path / "engine.json").write_text(content)
    engine, said = of_results(looking=True)
    assert engine == "llvm" and "engine.json: names no engine, so one is chosen anew" in said[0]
    assert (tmp_path / "engine.json").read_text() == content
    engine, said = of_results()
    assert engine == "llvm" and "names no engine" in said[0]
    assert json.loads((tmp_path / "engine.json").read_text())["engine"] == "llvm"


def test_a_network_that_is_down_chooses_no_other_engine(monkeypatch, of_results, tmp_path):
    Machine(monkeypatch, llvm="no network")
    with pytest.raises(environments.SetupError, match="llvm environment could not be made"):
        of_results()
    assert list(tmp_path.iterdir()) == []


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "engine", "more"),
    [
        ([], "torch", ["--engine", "torch", "--device", "gpu"]),
        (["--engine", "tensorflow"], "tensorflow", []),
        (["--engine", "llvm"], "llvm", []),
        (["--engine", "auto"], "torch", ["--engine", "torch", "--device", "gpu"]),
        (["--engine=auto", "--cpu"], "llvm", ["--engine", "llvm", "--device", "cpu"]),
        (["--engine", "auto", "--device", "cpu"], "llvm", ["--engine", "llvm", "--device", "cpu"]),
        (["--engine", "torch"], "torch", ["--device", "gpu"]),
        (["--engine", "torch", "--device", "cpu"], "torch", []),
    ],
)
def test_the_command_gets_an_engine_and_a_device(monkeypatch, words, engine, more):
    Machine(monkeypatch, LINUX, "NVIDIA", torch=GPU)
    assert ranking.for_command(words, "folder") == (engine, [*words, *more])


def test_torch_without_a_gpu_is_for_the_cpu_by_name_only(monkeypatch):
    Machine(monkeypatch)
    with pytest.raises(SynthSegError, match="--engine torch: no NVIDIA or Apple GPU is seen"):
        ranking.for_command(["--engine", "torch"], "folder")
    assert ranking.for_command(["--engine", "torch", "--cpu"], "folder")[0] == "torch"


@pytest.mark.parametrize(
    ("there", "engine", "says"),
    [
        ({"tensorflow"}, "tensorflow", True),
        ({"llvmlite", "torch"}, "llvm", True),
        (set(), "tensorflow", False),  # which then says what to install
    ],
)
def test_without_the_launcher_the_runtime_that_is_there_is_taken(monkeypatch, capsys, there, engine, says):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in there else None)
    assert options._engine_here() == engine
    line = f"engine auto: {engine}, whose runtime is in this environment\n"
    assert capsys.readouterr() == ("", line if says else "")
    assert cli.parser().get_default("engine") == ranking.AUTO


# --- verification ----------------------------------------------------------------------------------------------------


def test_a_machine_is_verified_once(monkeypatch, tmp_path):
    finding = {"schema": verify.SCHEMA, "fingerprint": verify.fingerprint("llvm")}
    finding |= {"precisions": ["float32"], "decision": {"device": "cpu", "reason": "well"}}
    script = tmp_path / "scripts/verify_env.py"
    script.parent.mkdir()
    text = json.dumps(json.dumps(sealed(finding)))
    script.write_text(f"import sys; open(sys.argv[-1], 'x').write({text}); sys.exit(1)")
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(environments, "ensure", lambda name, log: sys.executable)
    said = []
    for _ in range(2):
        assert ranking.verified("llvm", tmp_path, said.append) == finding
    assert said == ["verifying the llvm environment on this machine ..."]


def test_a_verification_that_says_nothing_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/verify_env.py").write_text("raise SystemExit('no numpy')")
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(environments, "ensure", lambda name, log: sys.executable)
    with pytest.raises(environments.SetupError, match="llvm environment could not be verified: no numpy"):
        ranking.verified("llvm", tmp_path, print)
