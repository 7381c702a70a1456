"""Calls of Snakemake by a process that has imported it: a third of what a call takes is paid once for all tests.
On a cluster they look after their jobs every second: of themselves they wait 10 s longer after every look in vain,
which would be most of the time that those tests take.

python warm_snakemake.py    reads calls, a JSON object a line, and makes each in a process that it forks, one after the
                            other; answers with its number, and at its end with its status. Nothing of this project is
                            imported before the fork: a call meets its own project's code.
"""

import asyncio
import functools
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

LATER = ("smart_open", "jsonschema", "nibabel")  # what each call would import, of Snakemake's and of the workflow's


def serve() -> None:
    from snakemake.cli import get_argument_parser, main
    from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

    RemoteExecutor.sleep = lambda self: asyncio.sleep(1)
    get_argument_parser()  # imports the plugins
    for name in LATER:
        importlib.import_module(name)
    gc.freeze()
    for line in sys.stdin:
        arguments, folder, environment, output = json.loads(line)
        if not (number := os.fork()):
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            said = os.open(output, os.O_WRONLY | os.O_APPEND)
            os.dup2(said, 1)
            os.dup2(said, 2)
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            sys.path[0], sys.argv = folder, ["snakemake", *arguments]
            sys.exit(main())
        print(number, flush=True)
        print(os.waitpid(number, 0)[1], flush=True)


class Process:
    """A call that runs, with what tests use of `subprocess.Popen`. One at a time: the next one ends the one before."""

    running = None

    def __init__(self, arguments: list[str], folder: Path, environment: dict[str, str]):
        if Process.running:
            os.killpg(Process.running.pid, signal.SIGKILL)
            Process.running.communicate()
        handle, output = tempfile.mkstemp()
        os.close(handle)
        self._output = Path(output)
        call = [[str(word) for word in arguments], str(folder), environment, output]
        _server().stdin.write(json.dumps(call).encode() + b"\n")
        self.pid, self.returncode = int(_server().stdout.readline()), None
        Process.running = self

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        if not select.select([_server().stdout], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("snakemake", timeout)
        self.returncode = os.waitstatus_to_exitcode(int(_server().stdout.readline()))
        Process.running = None
        output = self._output.read_text()
        self._output.unlink()
        return output, None


@functools.cache
def _server() -> subprocess.Popen:
    """It ends with the process that asks it: then its input does."""
    one_thread = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # a process of several is not to be forked
    return subprocess.Popen(
        [sys.executable, __file__], bufsize=0, env=one_thread, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


if __name__ == "__main__":
    serve()
