"""The run record: machine, phases, failures."""

import json
import platform

import pytest

from synthseg_native.errors import SynthSegError
from synthseg_native.results import record


def test_a_new_record_has_the_whole_schema_and_is_json():
    notes = record.new("native", ["synthseg-native", "--i", "a.nii"])
    assert set(notes) == {
        "schema", "kind", "status", "error", "scan", "command", "engine", "model", "mode", "precision", "device",
        "device_reason", "threads", "input", "output", "files", "machine", "seconds", "wall_s", "predicted_peak_mib",
        "peak_rss_mib", "memory_remark", "cgroup_peak_mib", "reference", "key", "started", "finished",
    }  # fmt: skip
    assert notes["status"] == "failed"  # until it is known to be done
    assert notes["started"].endswith("+00:00")
    json.dumps(notes, allow_nan=False)


def test_failure_and_success():
    notes = record.new("native", [])
    record.fail(notes, SynthSegError("oom", "a.nii: out of memory: more"))
    assert notes["error"] == {"code": "oom", "message": "a.nii: out of memory: more", "transient": True}
    record.succeed(notes)
    assert (notes["status"], notes["error"]) == ("ok", None)
    with pytest.raises(ValueError, match="unknown error code"):
        SynthSegError("bad_luck", "no")


def test_phases_add_up():
    clock = record.Clock()
    for _ in range(2):
        with clock("read"):
            sum(range(200_000))
    with pytest.raises(RuntimeError), clock("network"):
        raise RuntimeError
    seconds = clock.report()
    assert set(seconds) == {*record.PHASES, "total"}
    assert seconds["write"] == 0
    assert seconds["total"] + 0.002 >= seconds["read"] + seconds["network"]
    assert seconds["read"] > 0


def test_a_phase_in_parts_is_their_sum(monkeypatch):
    times = iter([0, 1, 3, 10, 14, 20])
    monkeypatch.setattr(record.time, "perf_counter", lambda: next(times))
    clock = record.Clock()
    for _ in range(2):
        with clock("read"):
            pass
    assert clock.report() == {**dict.fromkeys(record.PHASES, 0), "read": 2 + 4, "total": 20}


INTEL = {"vendor_id": "GenuineIntel", "model name": "Intel(R) Xeon(R) Processor", "flags": "fpu avx512f"}


@pytest.mark.parametrize(
    ("system", "arch", "cpuinfo", "translated", "expected"),
    [
        ("Linux", "x86_64", INTEL, None, False),
        (
            "Linux",
            "x86_64",
            {"vendor_id": "GenuineIntel", "model name": "QEMU Virtual CPU"},
            None,
            False,
        ),  # a KVM guest
        ("Linux", "x86_64", {"vendor_id": "VirtualApple", "model name": "VirtualApple @ 2.50GHz"}, None, True),
        ("Linux", "x86_64", {"CPU implementer": "0x61"}, None, True),
        ("Linux", "aarch64", {"CPU implementer": "0x61"}, None, False),
        ("Linux", "aarch64", {"vendor_id": "GenuineIntel", "model name": "Intel(R) Xeon(R)"}, None, True),
        ("Linux", "riscv64", {"hart": "0"}, None, False),
        ("Linux", "x86_64", {}, None, False),
        ("Darwin", "arm64", {}, "0", False),
        ("Darwin", "x86_64", {}, "1", True),
        ("Darwin", "x86_64", {}, None, False),  # an Intel Mac does not know the question
    ],
)
def test_emulation_is_seen(monkeypatch, system, arch, cpuinfo, translated, expected):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: arch)
    monkeypatch.setattr(record, "_cpuinfo", lambda: cpuinfo)
    monkeypatch.setattr(record, "_sysctl", lambda name: translated)
    assert record.emulated() is expected


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (INTEL, "Intel(R) Xeon(R) Processor"),
        ({"CPU implementer": "0x41", "CPU part": "0xd0c"}, "ARM implementer 0x41 part 0xd0c"),
        ({"CPU implementer": "0x61"}, "ARM implementer 0x61 part unknown"),
        ({"CPU implementer": "0x41", "model name": "ARMv8 Processor rev 1 (v8l)"}, "ARMv8 Processor rev 1 (v8l)"),
    ],
)
def test_the_cpu_has_the_name_that_linux_gives(monkeypatch, cpuinfo, name):
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(record, "_cpuinfo", lambda: cpuinfo)
    assert record.cpu_model() == name


def test_this_machine_has_a_name():
    machine = record.machine()
    assert set(machine) == {"cpu", "system", "arch", "emulated"}
    assert machine["cpu"]
    assert isinstance(machine["emulated"], bool)
