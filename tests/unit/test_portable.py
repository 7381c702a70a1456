"""What a user runs needs a POSIX shell, make 3.81 and the tools of a Mac, and no file's name is another's in a case."""

import os
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from rule_patterns import directive, rules

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
LAUNCHERS = ("snakemake", "synthseg-native", "scripts/launch.sh", "scripts/log.sh")

# Command -> how its options are written that a Mac's does not have (of macOS 12.0, the oldest one promised).
GNU_ONLY = {
    "readlink": r"-\w*[efm]|--\w",  # -f came with macOS 12.3
    "sed": r"-\w*r|-\w*i(?! ''| \.)|--\w|\S*\\[+?|st]",
    "date": r"-\w*[dI]|--\w|\S*%N",
    "mktemp": r"-\w*p|--\w",
    "stat": r"-\w*[cL]*c|--\w",
    "grep": r"-\w*P|--(?!color)\w",
    "xargs": r"-\w*[rd]|--\w",
    "sort": r"-\w*[VR]|--\w",
    "head": r"-[nc] ?-\d|--\w",
    "tail": r"-n ?-\w|--\w",
    "find": r"-(?:printf|regextype|executable)\b",
    "echo": r"-\w*[eE]",
    "env": r"-\w*[C]|--\w",
    **dict.fromkeys(("cp", "mv", "ln"), r"-\w*[tT]|--\w"),
    **dict.fromkeys(("ls", "du", "df", "cut", "tee", "touch", "mkdir", "rm", "wc", "dirname", "basename"), r"--\w"),
}
# Not on a Mac at all.
ABSENT = ("timeout", "nproc", "tac", "free", "md5sum", "sha256sum", "realpath", "shuf", "setsid", "flock", "numfmt",
          "ldd", "taskset", "find -", "gsed", "gdate", "wget")  # fmt: skip
START = r"(?:^|[|;&(`{]|\$\(|\b(?:do|then|else|exec|while|if|!)\s)\s*"


def not_on_a_mac(script):
    """The commands in a shell script that a Mac does not have, or not with these options."""
    found = []
    for line in re.sub(r"\\\n\s*", " ", script).splitlines():
        line = re.sub(r"(^|\s)#(\s.*|$)", "", line)
        for command, options in GNU_ONLY.items():
            for rest in re.findall(rf"{START}{command}\s+([^|;&]*(?:'[^']*'[^|;&]*)*)", line):
                if re.search(rf"(?:^|\s)(?:{options})", rest):
                    found.append(f"{command} {rest}".strip())
        found += [word for word in ABSENT if re.search(rf"{START}{re.escape(word)}\b", line)]
    return found


def scripts():
    """Name -> shell script of all that a user runs or reads: launchers, recipes of make, steps, blocks in the docs."""
    found = {name: (ROOT / name).read_text(encoding="utf-8") for name in LAUNCHERS}
    recipes = re.findall(r"^([a-z0-9-]+):[^\n]*\n((?:\t.*\n)+)", MAKEFILE, re.M)
    found |= {f"make {name}": re.sub(r"^\t@?", "", text, flags=re.M).replace("$$", "$") for name, text in recipes}
    for name, (_, body) in rules().items():
        if block := directive(body, "shell"):
            found[f"rule {name}"] = re.sub(r"\{[\w.]+(:q)?\}", "word", block.strip().strip('r"'))
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("[a-z]*/README.md")):
        blocks = re.findall(r"^ *```(?:console|sh|bash)?\n(.*?)^ *```$", page.read_text(encoding="utf-8"), re.M | re.S)
        found[page.relative_to(ROOT).as_posix()] = "\n".join(blocks).replace("$ ", "")
    return found


def test_all_scripts_are_found():
    found = scripts()
    assert {"snakemake", "make test", "make help", "make prove", "rule native", "README.md", "docs/mac.md"} <= set(
        found
    )
    assert "--scan word" in found["rule native"] and "pytest" not in found["make help"]


@pytest.mark.parametrize("name", scripts())
def test_what_a_user_runs_needs_no_gnu_tool(name):
    assert not_on_a_mac(scripts()[name]) == []


@pytest.mark.parametrize(
    "line",
    [
        "here=$(readlink -f -- $0)", "sed -i s/a/b/ file", "sed -ri 's/(a)/b/' x", "a | sed 's/a\\+/b/'",
        "date -d tomorrow",
        "mktemp --suffix=.nii", "mktemp -d -p /tmp", "stat -c %s file", "ls | xargs -r rm", "grep -oP a", "sort -V x",
        "if timeout 5 true; then :; fi", "a=$(nproc)", "head -n -1 x", "cp --parents a b", "find -name x", "echo -e a",
        "date +%s%N", "env -C /tmp ls", "sed \\\n  -r s/a/b/",
    ],
)  # fmt: skip
def test_a_gnu_only_command_is_noticed(line):
    assert len(not_on_a_mac(line)) == 1


@pytest.mark.parametrize(
    "line",
    ["readlink -- x", "sed -n 's/a/b/p' f", "sed -i '' s/a/b/ f", "date +%s", "mktemp -d", "grep -E 'a|b' f",
     "head -n 5 f", "cp -pR a b", "find . -name x", "env -u A b", "# timeout 5", "make timeout",
     "sort -u f", "--timeout 5"],
)  # fmt: skip
def test_what_a_mac_has_is_let_through(line):
    assert not_on_a_mac(line) == []


def checker():
    if not (program := shutil.which("shellcheck")):
        if os.environ.get("REQUIRE_SHELLCHECK") == "1":
            pytest.fail("no shellcheck here")
        pytest.skip("no shellcheck here")
    return program


def test_every_script_is_posix():
    """Steps are run by bash, which is of version 3.2 on a Mac: what POSIX has not may be missing there."""
    program, found = checker(), {}
    for name, text in scripts().items():
        if name.endswith(".md"):
            continue
        if name.startswith("make "):
            text = re.sub(r"\$\((\w+)\)", "some words", text)
        done = subprocess.run(
            [program, "--shell=sh", "--severity=warning", "-"], input=text, capture_output=True, text=True
        )
        if done.returncode:
            found[name] = done.stdout
    assert found == {}


def test_a_word_of_a_newer_bash_is_noticed():
    script = "mapfile -t lines < file\necho ${lines[0]^^}\n"
    done = subprocess.run(
        [checker(), "--shell=sh", "--severity=warning", "-"], input=script.encode(), capture_output=True
    )
    assert done.returncode == 1


# What came after make 3.81, which a Mac has: .ONESHELL, private, undefine, != (3.82, 4.0), $(file), ::=, $(let), ...
NEWER_MAKE = r"^\.(ONESHELL|RECIPEPREFIX|EXTRA_PREREQS|WAIT)|^(private|undefine|-?load)\b|^\w+ *(!=|::+=)"
NEWER_MAKE += r"|\$\((file|guile|let|intcmp) "


def test_make_3_81_understands_the_makefile():
    assert not re.search(NEWER_MAKE, MAKEFILE, re.M)
    for line in (".ONESHELL:", "private A = b", "undefine A", "A != b", "A ::= b", "a: ; $(file >a,b)"):
        assert re.search(NEWER_MAKE, line, re.M), line


# --- names of files --------------------------------------------------------------------------------------------------


def same_on_a_mac(names):
    """Names of files or folders that a Mac takes for one, as its file system knows no case and one form of accents."""
    seen, found = {}, []
    whole = {"/".join(name.split("/")[:depth]) for name in names for depth in range(1, name.count("/") + 2)}
    for name in sorted(whole):
        first = seen.setdefault(unicodedata.normalize("NFD", name).casefold(), name)
        if first != name:
            found.append((first, name))
    return found


def test_no_two_files_have_one_name_on_a_mac():
    done = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no clone: which files are the project's is not known")
    names = [name for name in done.stdout.split("\0") if name]
    assert len(names) > 200
    assert same_on_a_mac(names) == []
    assert [name for name in names if re.search(r'[:\\*?"<>|]|[ .]$', name)] == [], "names that another system refuses"


def test_names_that_differ_by_case_are_noticed():
    assert same_on_a_mac(["a/B.py", "a/b.py", "c/d"]) == [("a/B.py", "a/b.py")]
    assert same_on_a_mac(["Docs/a", "docs/b"]) == [("Docs", "docs")]
    assert same_on_a_mac(["größe", unicodedata.normalize("NFD", "größe")]) != []
    assert same_on_a_mac(["a/b", "a/c", "ab"]) == []


# --- the launchers, by other shells and with a Mac's readlink --------------------------------------------------------

SHELLS = {"dash": ["dash"], "bash": ["bash"], "bash, POSIX": ["bash", "--posix"], "busybox": ["busybox", "sh"],
          "ksh": ["ksh"], "zsh": ["zsh"]}  # fmt: skip


@pytest.mark.parametrize("shell", SHELLS)
def test_any_shell_finds_the_launcher_behind_links(tmp_path, shell):
    """No link is followed by the tools but one at a time, as readlink of macOS 12.0 does it."""
    if not shutil.which(SHELLS[shell][0]):
        pytest.skip(f"no {SHELLS[shell][0]} here")
    place, path = tmp_path / "a project", tmp_path / "tools"
    for name in LAUNCHERS:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / name)
    (place / "scripts/environment.py").write_text("import sys; print(sys.argv[1:])")
    path.mkdir()
    refuse = 'case $1 in --) ;; -*) echo "readlink: illegal option" >&2; exit 1 ;; esac'
    sh = " ".join([shutil.which(SHELLS[shell][0]), *SHELLS[shell][1:]])
    readlink = f"{refuse}\nexec {shutil.which('readlink')}"
    for name, text in {"readlink": readlink, "python3": f"exec {sys.executable}", "sh": f"exec {sh}"}.items():
        (path / name).write_text(f'#!/bin/sh\n{text} "$@"\n')
        (path / name).chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/seg").symlink_to("../links/second")
    (tmp_path / "links").mkdir()
    (tmp_path / "links/second").symlink_to(place / "synthseg-native")
    env = {"PATH": f"{path}:/usr/bin:/bin", "HOME": str(tmp_path)}
    for launcher in (tmp_path / "bin/seg", place / "synthseg-native"):
        done = subprocess.run([*SHELLS[shell], launcher, "--i", "my scan.nii"], env=env, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "['segment', '--i', 'my scan.nii']\n", "")
    log = subprocess.run(
        [*SHELLS[shell], place / "scripts/log.sh", tmp_path / "log"], env=env, input=b"said\n", capture_output=True
    )
    assert log.stdout == (tmp_path / "log").read_bytes() == b"said\n"
