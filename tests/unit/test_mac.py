"""A Mac, as far as it can be shown without one: what its programs answer, taken from public logs of such machines, and
the kernels as they are compiled for its processors."""

import json
import os
import platform
import re
import resource
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from synthseg_native import measure, memory, owners
from synthseg_native.cohort import environments, interpreters
from synthseg_native.results import record
from synthseg_native.verification import tensorflow, torch, verify

# What `sysctl -n NAME` says there; what a machine does not know it calls an unknown oid. From Dr-Noob/cpufetch#139 (M1
# Pro), wandb/wandb#12680 (M4 Max), archspec/archspec#38 (M1); proc_translated as a process sees it that Rosetta runs.
M1 = {
    "machdep.cpu.brand_string": "Apple M1", "hw.model": "MacBookPro17,1", "hw.optional.arm64": "1",
    "hw.memsize": "17179869184", "hw.perflevel0.physicalcpu": "4", "hw.perflevel1.physicalcpu": "4",
    "sysctl.proc_translated": "0", "kern.bootsessionuuid": "0A1B2C3D-4E5F-4A6B-8C7D-9E0F1A2B3C4D",
}  # fmt: skip
M1_PRO = M1 | {"machdep.cpu.brand_string": "Apple M1 Pro", "hw.perflevel0.physicalcpu": "8"}
M1_PRO |= {"hw.perflevel1.physicalcpu": "2", "hw.model": "MacBookPro18,1"}
M4_MAX = M1 | {"machdep.cpu.brand_string": "Apple M4 Max", "hw.model": "Mac16,5", "hw.memsize": "68719476736"}
M4_MAX |= {"hw.perflevel0.physicalcpu": "12", "hw.perflevel1.physicalcpu": "4"}
ROSETTA = M1_PRO | {"sysctl.proc_translated": "1"}
INTEL = {"machdep.cpu.brand_string": "Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", "hw.memsize": "17179869184"}
INTEL |= {"kern.bootsessionuuid": M1["kern.bootsessionuuid"], "hw.model": "MacBookPro16,1"}
BOOT = owners._boot.__wrapped__  # it keeps its answer
STARTED = {"C": "Sat Nov 28 11:02:03 2026    ", "other": "Sa 28 Nov 12:02:03 2026    "}


@pytest.fixture
def mac(monkeypatch, tmp_path):
    """A function that makes this process take its machine for a Mac, which answers as given."""

    def pretend(answers, machine="arm64"):
        cases = "".join(f"{name}) echo '{value}' ;;\n" for name, value in answers.items())
        program(
            "sysctl",
            f'[ "$1" = -n ] || exit 64\ncase $2 in\n{cases}*) echo "sysctl: unknown oid \'$2\'" >&2; exit 1 ;;\nesac',
        )
        program(
            "ps",
            f"""[ "$1 $2 $3" = "-o lstart= -p" ] || exit 64
if [ "$LC_ALL $TZ" = "C UTC" ]; then echo '{STARTED["C"]}'; else echo '{STARTED["other"]}'; fi""",
        )
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr(sys, "platform", "darwin")
        for name, value in {"system": "Darwin", "machine": machine, "release": "25.2.0"}.items():
            monkeypatch.setattr(platform, name, lambda value=value: value)
        nowhere = tmp_path / "nowhere"
        monkeypatch.setattr(record, "_cpuinfo", dict)
        monkeypatch.setattr(owners, "Path", lambda path: nowhere / path.lstrip("/"))
        monkeypatch.setattr(owners, "_space", lambda: "")
        monkeypatch.setattr(memory, "OWN_GROUPS", nowhere)
        monkeypatch.setattr(owners, "_boot", BOOT)

    def program(name, text):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)

    return pretend


@pytest.mark.parametrize(
    ("answers", "python", "cpu", "emulated", "processor", "gpu"),
    [
        (M1, "arm64", "Apple M1", False, "arm64", "Apple"),
        (M4_MAX, "arm64", "Apple M4 Max", False, "arm64", "Apple"),
        (ROSETTA, "x86_64", "Apple M1 Pro", True, "arm64", "Apple"),
        (INTEL, "x86_64", "Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", False, "x86_64", None),
    ],
)
def test_what_a_mac_says_of_itself(mac, answers, python, cpu, emulated, processor, gpu):
    mac(answers, python)
    assert record.machine() == {"cpu": cpu, "system": "Darwin", "arch": python, "emulated": emulated}
    assert interpreters.machine() == processor, "what environments are made for"
    assert environments.gpu() == gpu


@pytest.mark.parametrize(("pages", "page", "gib"), [(1048576, 16384, 16), (4194304, 16384, 64), (4194304, 4096, 16)])
def test_memory_is_counted_in_the_pages_of_the_processor(mac, monkeypatch, pages, page, gib):
    """16 KiB each on Apple's processors, 4 KiB under Rosetta."""
    mac(M1)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": pages, "SC_PAGE_SIZE": page}.__getitem__)
    assert verify.machine()["memory_gib"] == gib and memory.limit_mib() == gib * 1024
    assert verify.machine()["driver"] == ""


def test_a_python_that_does_not_know_the_memory_asks_sysctl(mac, monkeypatch):
    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown)
    mac(M4_MAX)
    assert verify.memory_bytes() == 64 * 2**30
    mac({})
    assert verify.memory_bytes() == 0 and memory.limit_mib() is None


def test_a_process_started_when_it_did_in_any_language_and_at_any_hour(mac, monkeypatch):
    """ps writes the time as the language and the zone of the caller have it."""
    mac(M1)
    begun = owners.me()
    assert (begun.boot, begun.started) == (M1["kern.bootsessionuuid"], STARTED["C"].strip())
    for name, value in {"LC_ALL": "de_DE.UTF-8", "TZ": "Europe/Berlin"}.items():
        monkeypatch.setenv(name, value)
    assert owners.is_alive(begun) is True
    assert owners.is_alive(replace(begun, started="Sat Nov 28 11:02:04 2026")) is False, "another one, with its number"
    mac(M1 | {"kern.bootsessionuuid": "FFFFFFFF-4E5F-4A6B-8C7D-9E0F1A2B3C4D"})
    assert owners.is_alive(begun) is False, "before the restart"


# /usr/bin/time -l on such machines: "1598685184  maximum resident set size". Linux would have said 1561216.
PEAK = 1598685184


def test_the_peak_is_in_bytes(mac, monkeypatch):
    mac(M1)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=PEAK))
    assert memory.own_peak_mib() == 1524.6
    wait, used = os.wait4, SimpleNamespace(ru_maxrss=PEAK)
    monkeypatch.setattr(os, "wait4", lambda pid, options: (*wait(pid, options)[:2], used))
    monkeypatch.setattr(measure, "_read", lambda path: "")  # no /proc
    found = measure.measure(["true"], cgroup=True)
    assert (found["peak_rss_mib"], found["returncode"]) == (1524.6, 0)
    assert (found["oom_kills"], found["cgroup_peak_mib"]) == (None, None)


# --- Metal: what its runtimes say ------------------------------------------------------------------------------------

# tensorflow-metal where an operation has no kernel and soft placement is off (developer.apple.com, thread 759438) and
# on (mrdbourke/tensorflow-deep-learning#298); PyTorch (pytorch/pytorch#117949, Comfy-Org/ComfyUI#2044).
PLACE = "/job:localhost/replica:0/task:0/device"
PLACED = (
    f"Could not satisfy device specification '{PLACE}:GPU:0'. enable_soft_placement=0. Supported device types [CPU]."
)
PLACED += f" All available devices [{PLACE}:GPU:0, {PLACE}:CPU:0]. [Op:Conv3D]"
NO_KERNEL = "No registered 'Conv3D' OpKernel for 'GPU' devices compatible with node {{node Conv3D}}"
REST = "\n\t.  Registered:  device='CPU'\n [Op:Conv3D]"
SLOW = "The operator 'aten::slow_conv3d_forward' is not currently implemented for the MPS device."


@pytest.mark.parametrize(
    ("runtime", "message", "told"),
    [
        (tensorflow, PLACED, PLACED),
        (tensorflow, NO_KERNEL + REST, NO_KERNEL),
        (torch, "Conv3D is not supported on MPS", "Conv3D is not supported on MPS"),
        (torch, SLOW + "\nmore", SLOW),
    ],
)
def test_why_metal_cannot_is_one_line(runtime, message, told):
    assert runtime.clean(RuntimeError(message)) == told


def test_tensorflows_metal_device_is_seen_and_named(monkeypatch):
    """The plug-in lists a GPU and calls it METAL, as its log does (tensorflow/tensorflow#53026)."""
    gpu = SimpleNamespace(name="/physical_device:GPU:0", device_type="GPU")
    hidden, config = [], SimpleNamespace()
    config.threading = SimpleNamespace(set_intra_op_parallelism_threads=int, set_inter_op_parallelism_threads=int)
    config.set_soft_device_placement, config.list_physical_devices = (lambda on: None), (lambda kind: [gpu])
    config.set_visible_devices = lambda devices, kind: hidden.append((devices, kind))
    config.experimental = SimpleNamespace(get_device_details=lambda device: {"device_name": "METAL"})
    monkeypatch.setitem(sys.modules, "tensorflow", SimpleNamespace(config=config, __version__="2.15.1"))
    monkeypatch.setattr(tensorflow, "has_onednn", lambda: None)
    monkeypatch.setattr(tensorflow, "set_environment", lambda: None)
    _, versions, seen = tensorflow.start("cpu")
    assert versions["oneDNN"] == "unknown" and hidden == [([], "GPU")]
    about = [(device["name"], device["kind"], device["description"]) for device in seen]
    assert about == [("CPU:0", "cpu", ""), ("GPU:0", "gpu", "METAL")]


# --- the kernels, for its processors ---------------------------------------------------------------------------------

# In the llvm environment: every kernel of an engine, compiled for an M1 as a Mac would have it.
PROGRAM = """
import json, struct, sys
import numpy as np
from synthseg_native.engines import llvm as engine
from synthseg_native.engines.kernels import language, library
from synthseg_native.networks.layers import layer_table
from synthseg_native.verification.probes import plausible_weights

binding = language.llvm().binding
binding.initialize_all_targets()
binding.initialize_all_asmprinters()
found = {}

def undefined(code):
    "Names that a Mach-O object leaves to others."
    place, names = 32, []
    for _ in range(struct.unpack_from("<I", code, 16)[0]):
        command, size = struct.unpack_from("<2I", code, place)
        if command == 2:  # LC_SYMTAB
            symbols, count, strings, _ = struct.unpack_from("<4I", code, place + 8)
            for number in range(count):
                name, kind = struct.unpack_from("<IB", code, symbols + 16 * number)
                if kind & 0x0E == 0:
                    names.append(code[strings + name : code.index(b"\\0", strings + name)].decode())
        place += size
    return names

def compile(self, cache=None):
    target = binding.Target.from_triple("arm64-apple-macosx12.0.0")
    target = target.create_target_machine(cpu=self.machine.cpu, features=self.machine.features, opt=2)
    for name in self._kernels:
        module = self._module(name)
        code, text = target.emit_object(module), target.emit_assembly(module)
        found[name] = {"begins": code[:8].hex(), "undefined": undefined(code), "fused": text.count("fmla.4s")}
    return {}

library.Library.compile = compile
language.this_machine = lambda: language.Machine(4, 32, "apple-m1", "", fused=True)
table = layer_table(levels=2, features=4, labels=3, convolutions_per_level=1)
built = engine.build(table, plausible_weights(table, np.random.default_rng(1)), threads=1)
built._stream._compiled.result()
print(json.dumps(found))
"""


@pytest.mark.slow
def test_the_kernels_compile_for_apples_processors_and_need_nothing_else(root, llvm_python):
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    done = subprocess.run([llvm_python, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {re.sub(r"_.*", "", name) for name in found} >= {"convolution", "pooling", "likelihood", "smoothing"}
    for name, about in found.items():
        assert about["begins"] == "cffaedfe0c000001", f"{name}: no Mach-O for arm64"
        assert about["undefined"] == [], f"{name}: there is nothing that it could be linked with"
    assert all(about["fused"] for name, about in found.items() if name.startswith("convolution"))


def test_where_llvm_does_not_tell_the_features_the_processor_is_known_by_its_name(monkeypatch):
    from synthseg_native.engines.kernels import language

    def silent():
        raise RuntimeError("failed to get host cpu features.")

    binding = SimpleNamespace(get_host_cpu_features=silent, get_host_cpu_name=lambda: "apple-m1")
    binding.get_default_triple = lambda: "arm64-apple-darwin25.2.0"
    monkeypatch.setattr(language, "llvm", lambda: SimpleNamespace(binding=binding))
    assert language.this_machine() == language.Machine(4, 32, "apple-m1", "", fused=True)
