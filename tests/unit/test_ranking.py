"""engine: auto. What is timed, what drops a candidate, and that only the user changes a choice."""

import functools
import importlib.util
import json
import sys

import pytest

from synthseg_native import cli, options
from synthseg_native.cohort import environments, ranking
from synthseg_native.engines import NAMES
from synthseg_native.errors import SynthSegError
from synthseg_native.files import sealed
from synthseg_native.verification import speed, verify

CPU, GPU, NOTHING = "cpu", "gpu", None
SECONDS = {"torch": 0.1, "llvm": 0.5, "tensorflow": 3.0}


class Machine:
    """A machine with or without a GPU; `devices`: what the verification of each engine's environment decides.

    bf16: whether the devices compute in it · there: engines whose environment was made · seconds: of a slab, or what
    an engine that does not run says
    """

    def __init__(self, monkeypatch, folder, gpu=None, bf16=True, there=(), seconds=SECONDS, **devices):
        self.bf16, self.seconds = bf16, seconds
        self.devices = dict.fromkeys(NAMES, CPU) | devices
        self.there, self.looked_at, self.timed, self.made, self.said = set(there), [], [], [], []
        self.folder = folder / "environments"
        monkeypatch.setenv("SYNTHSEG_NATIVE_CACHE", str(folder / "cache"))
        monkeypatch.setattr(environments, "gpu", lambda: gpu)
        monkeypatch.setattr(environments, "ensure_all", self.ensure_all)
        monkeypatch.setattr(environments, "python", lambda name: folder if name in self.there else folder / "none")
        monkeypatch.setattr(ranking, "verified", self.verified)
        monkeypatch.setattr(ranking, "timed", self.time)

    def ensure_all(self, names, log):
        self.made.append(list(names))
        if self.devices[names[0]] == "no network":
            raise environments.SetupError(f"the {names[0]} environment could not be made: no network")
        self.there |= set(names)

    def time(self, engine, device, precision):
        self.timed.append(engine)
        if isinstance(self.seconds[engine], str):
            raise SynthSegError("internal", self.seconds[engine])
        return self.seconds[engine]

    def verified(self, engine, folder, log=None):
        self.looked_at.append(engine)
        device = self.devices[engine]
        decision = {"device": device, "reason": "passed every probe" if device else "Conv3D: wrong numbers"}
        return {"precisions": ["float32", "bf16"][: 1 + self.bf16], "decision": decision}

    def choose(self, **asked):
        return ranking.choose("folder", **asked, log=self.said.append)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    return functools.partial(Machine, monkeypatch, tmp_path)


@pytest.mark.parametrize(
    ("gpu", "devices", "engine", "device"),
    [
        ("NVIDIA", {"torch": GPU}, "torch", GPU),
        ("NVIDIA", {"torch": CPU}, "llvm", CPU),  # the GPU is seen, and fails a probe
        (None, {}, "llvm", CPU),
        (None, {"llvm": NOTHING}, "tensorflow", CPU),
        ("Apple", {"torch": NOTHING, "llvm": NOTHING}, "tensorflow", CPU),
    ],
)
def test_where_nothing_is_there_one_environment_after_the_other_is_made(machine, gpu, devices, engine, device):
    machine = machine(gpu=gpu, **devices)
    found = machine.choose()
    assert (found["engine"], found["device"]) == (engine, device)
    outcomes = {row["engine"]: row["outcome"] for row in found["ranking"]}
    assert outcomes[engine] == "chosen: passed every probe" and all(outcomes.values())
    assert [made[0] for made in machine.made] == machine.looked_at and machine.looked_at[-1] == engine
    assert machine.timed == [], "there is no choice"
    assert any(f"engine auto: {engine} on the {device.upper()}: chosen" in line for line in machine.said)
    json.dumps(found, allow_nan=False)


def test_of_those_that_are_there_the_quickest_is_taken_by_the_numbers_of_this_machine(machine):
    slow = SECONDS | {"llvm": 4.25}
    found = (first := machine(there=["tensorflow"], seconds=slow)).choose()
    assert found["engine"] == "tensorflow" and first.timed == ["llvm", "tensorflow"]
    assert first.looked_at == ["tensorflow"], "what is slower is not verified for nothing"
    assert first.said == [
        "timing llvm and tensorflow on this machine ...",
        "engine auto: tensorflow on the CPU: chosen: passed every probe, 3 s for a slab",
    ]
    assert {row["engine"]: row["seconds"] for row in found["ranking"]} == slow | {"torch": None}
    assert [row["outcome"] for row in found["ranking"]] == [
        "torch: no NVIDIA or Apple GPU is seen on this machine",
        "slower",
        "chosen: passed every probe, 3 s for a slab",
    ]
    found = (again := machine(there=["tensorflow"])).choose()
    assert found["engine"] == "tensorflow" and again.timed == [], "once per machine"
    found = (bad := machine(there=["tensorflow"], tensorflow=NOTHING)).choose()
    assert found["engine"] == "llvm" and bad.looked_at == ["tensorflow", "llvm"]


def test_a_time_is_of_one_machine_and_of_its_versions(machine, monkeypatch):
    machine(there=["tensorflow"]).choose()
    monkeypatch.setattr(verify, "fingerprint", lambda environment: f"another {environment}")
    assert (other := machine(there=["tensorflow"])).choose()["engine"] == "llvm"
    assert other.timed == ["llvm", "tensorflow"]


def test_an_engine_that_does_not_run_is_out(machine):
    broken = SECONDS | {"llvm": "does not run here: memory that is written may not be run"}
    found = (machine := machine(there=["tensorflow"], seconds=broken)).choose()
    assert found["engine"] == "tensorflow" and machine.looked_at == ["tensorflow"]
    assert machine.said[1] == "engine auto: llvm: does not run here: memory that is written may not be run"
    assert found["ranking"][1]["outcome"] == "does not run here: memory that is written may not be run"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print(1.5)", None),
        ("import sys; sys.exit('no numpy')", "does not run here: no numpy"),
        ("", "does not run here: it said nothing"),
        ("import time; time.sleep(60)", "does not finish a slab within 0.5 s"),
    ],
)
def test_what_a_timing_says(monkeypatch, tmp_path, code, words):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/time_engine.py").write_text(code)
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(environments, "python", lambda name: sys.executable)
    if words is None:
        assert ranking.timed("llvm", "cpu", "float32") == 1.5
        return
    monkeypatch.setattr(speed, "MOST_S", 0.5)
    with pytest.raises(SynthSegError, match=words):
        ranking.timed("llvm", "cpu", "float32")


@pytest.mark.parametrize("content", ["", "[]", '{"seconds": "1"}', '{"seconds": -1}', '{"seconds": true}'])
def test_a_damaged_time_is_taken_again(machine, monkeypatch, content):
    machine(there=["tensorflow"]).choose()
    monkeypatch.setattr(speed, "keep", lambda *_: None)
    for path in speed._place("llvm", "cpu", "float32").parent.glob("llvm*"):
        path.write_text(content)
    assert (again := machine(there=["tensorflow"])).choose()["engine"] == "llvm" and again.timed == ["llvm"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["llvm", "tensorflow"])
def test_a_real_engine_takes_a_slab_in_seconds(request, engine, monkeypatch):
    python = request.getfixturevalue(f"{engine}_python")
    monkeypatch.setattr(environments, "python", lambda name: python)
    assert 0.05 < ranking.timed(engine, "cpu", "float32") < 30


def test_precision_and_device_filter_the_candidates(machine):
    assert machine(gpu="Apple", torch=GPU).choose(device="cpu")["engine"] == "llvm"
    assert machine(gpu="Apple", torch=GPU).choose(device="gpu", precision="bf16")["engine"] == "torch"
    says = "engine auto: none works here with bf16 on device auto: torch alone has it: name that, or use float32"
    with pytest.raises(SynthSegError, match=says):
        (rough := machine(gpu="NVIDIA", bf16=False, torch=GPU)).choose(precision="bf16")
    assert "torch on the GPU: passed every probe, but not in bf16" in rough.said[-1]
    with pytest.raises(SynthSegError, match="engine auto: none works here with float32 on device gpu: name one"):
        machine(gpu="NVIDIA").choose(device="gpu")


def test_other_environments_are_made_along_with_the_candidate_s(machine):
    machine = machine(llvm=NOTHING)
    ranking.choose("folder", log=machine.said.append, beside=["tensorflow", "demo"])
    assert machine.made[0] == ["llvm", "tensorflow", "demo"] and machine.timed == ["llvm", "tensorflow"]
    assert machine.looked_at == ["llvm", "tensorflow"]


# --- once per results folder -----------------------------------------------------------------------------------------


@pytest.fixture
def of_results(tmp_path):
    def engine(looking=False, precision="float32"):
        said = []
        found = ranking.of_results(tmp_path / "engine.json", "env", precision, "auto", looking, said.append)
        return found, said

    return engine


def test_a_choice_stays_until_the_user_changes_it(machine, monkeypatch, of_results, tmp_path):
    first = machine()
    assert of_results()[0] == "llvm" and first.looked_at == ["llvm"]
    written = (tmp_path / "engine.json").read_bytes()
    second = machine(llvm=NOTHING)
    assert of_results() == ("llvm", []) and second.looked_at == []
    monkeypatch.setattr(ranking.record, "machine", lambda: {"cpu": "another", "system": "Linux"})
    engine, said = of_results()
    assert engine == "llvm" and len(said) == 1
    assert "llvm was chosen on" in said[0] and "delete it to choose anew" in said[0]
    assert (tmp_path / "engine.json").read_bytes() == written
    (tmp_path / "engine.json").unlink()
    assert of_results()[0] == "tensorflow"


def test_a_choice_of_an_engine_that_is_no_more_goes_on_with_what_took_its_place(
    machine, monkeypatch, of_results, tmp_path
):
    machine = machine()
    (tmp_path / "engine.json").write_text(json.dumps({"engine": "openvino", "machine": ranking.record.machine()}))
    engine, said = of_results(looking=True)
    assert engine == "llvm" and "openvino is no more, llvm took its place: its runs are made anew" in said[0]
    assert of_results()[0] == "llvm" and machine.looked_at == []
    assert of_results() == ("llvm", [])  # said once


def test_a_dry_run_chooses_nothing(machine, monkeypatch, of_results, tmp_path):
    machine = machine()
    engine, said = of_results(looking=True)
    assert engine == "llvm" and "chosen when the workflow runs" in said[0]
    assert machine.looked_at == [] and list(tmp_path.iterdir()) == []
    with pytest.raises(SynthSegError, match="engine auto: none works here with bf16 on device auto: torch alone"):
        of_results(looking=True, precision="bf16")


@pytest.mark.parametrize("content", ["", "[]", '{"engine": "abacus"}', '{"engine": ["llvm"]}'])
def test_a_file_that_names_no_engine_is_said_and_made_anew(machine, monkeypatch, of_results, tmp_path, content):
    machine()
    (tmp_path / "engine.json").write_text(content)
    engine, said = of_results(looking=True)
    assert engine == "llvm" and "engine.json: names no engine, so one is chosen anew" in said[0]
    assert (tmp_path / "engine.json").read_text() == content
    engine, said = of_results()
    assert engine == "llvm" and "names no engine" in said[0]
    assert json.loads((tmp_path / "engine.json").read_text())["engine"] == "llvm"


def test_a_network_that_is_down_chooses_no_other_engine(machine, monkeypatch, of_results, tmp_path):
    machine(llvm="no network")
    with pytest.raises(environments.SetupError, match="llvm environment could not be made"):
        of_results()
    assert not (tmp_path / "engine.json").exists()


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
def test_the_command_gets_an_engine_and_a_device(machine, words, engine, more):
    machine(gpu="NVIDIA", torch=GPU)
    assert ranking.for_command(words, "folder") == (engine, [*words, *more])


def test_torch_without_a_gpu_is_for_the_cpu_by_name_only(machine):
    machine()
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
