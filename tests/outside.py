"""A network namespace without a way out, whose kernel counts every try to find one.

Whatever opens a connection or asks for a name there, in any language and by any proxy, finds no route, and the counter
OutNoRoutes goes up: 0 after a run means that no process of it knocked anywhere.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
# Programs that call home leave it where they think that they are tested.
HIDDEN = ("CI", "TF_BUILD", "JENKINS_URL", "no_proxy", "NO_PROXY")
ENTER = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
RUN = '"$@"; code=$?; cat /proc/net/snmp /proc/net/snmp6 >"$counters"; exit $code'


def available() -> bool:
    """Whether this machine lets us have such a namespace."""
    return shutil.which("unshare") is not None and subprocess.run([*ENTER, "true"], capture_output=True).returncode == 0


def need() -> None:
    """Skip the test where it does not; fail it where REQUIRE_NAMESPACE is set."""
    if not available():
        (pytest.fail if os.environ.get("REQUIRE_NAMESPACE") else pytest.skip)(
            "no network namespace here (unshare --net)"
        )


def within(command: list, counters: Path) -> list[str]:
    """The command, run in a namespace of its own; what the kernel counted is then in a file."""
    return [*ENTER, "env", f"counters={counters}", "sh", "-c", RUN, "sh", *map(str, command)]


def hostile(home: Path) -> dict[str, str]:
    """Variables to set there: another home, every proxy, and nothing that makes a program shy."""
    home.mkdir(parents=True, exist_ok=True)
    unset = dict.fromkeys((*HIDDEN, "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), "")
    return unset | {"HOME": str(home)} | dict.fromkeys(PROXIES, "http://127.0.0.1:9")


def tries(counters: Path | int) -> int:
    """How often something looked for a way out of the namespace: of `within`'s file, or where a process lives now."""
    files = [counters] if isinstance(counters, Path) else Path(f"/proc/{counters}/net").glob("snmp*")
    text = "".join(path.read_text() for path in files)
    names, values = (line.split() for line in re.findall(r"^Ip: .*$", text, re.M))
    six = re.search(r"^Ip6OutNoRoutes\s+(\d+)$", text, re.M)
    return int(values[names.index("OutNoRoutes")]) + (int(six[1]) if six else 0)


def undocumented(home: Path) -> list[str]:
    """What lies in a home and docs/privacy.md does not list: files, and folders with nothing in them."""
    table = (Path(__file__).parents[1] / "docs/privacy.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `~/([^`]+?)/?` \|", table, re.M)
    assert listed
    ends = [path for path in home.rglob("*") if not path.is_dir() or not any(path.iterdir())]
    names = [path.relative_to(home).as_posix() for path in sorted(ends)]
    return [name for name in names if not any(f"{name}/".startswith(f"{place}/") for place in listed)]
