"""A progress bar over scans on a terminal, nothing elsewhere; and long calls that Ctrl-C can interrupt."""

import sys
import threading
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

from synthseg_native.errors import printable

TICK_S = 0.5


class Progress:
    """``with Progress(number of scans) as bar``: `show` moves it, `say` prints past it, `in_thread` calls at length."""

    def __init__(self, scans: int):
        self.done = 0
        form = "{desc:<40.40} {percentage:3.0f}% |{bar}| {elapsed} < {remaining}"
        self.bar = tqdm(total=scans, disable=None, leave=False, dynamic_ncols=True, bar_format=form, file=sys.stderr)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def show(self, name: str, phase: str, share: float) -> None:
        """The scan `name` is in this phase, and this share of it, in [0, 1], is done."""
        self.bar.set_description_str(printable(f"{name}: {phase}"), refresh=False)
        self.bar.n = self.done + share
        self.bar.refresh()

    def finished(self) -> None:
        """One more scan is done, well or not."""
        self.done += 1
        self.bar.n = self.done
        self.bar.refresh()

    def say(self, line: str, file: TextIO) -> None:
        """Print a line without tearing the bar; a line it stays, whatever a path in it holds."""
        with tqdm.external_write_mode(file=file):
            print(printable(line), file=file, flush=True)

    def in_thread(self, function: Callable, *arguments: object) -> object:
        """Call a function in a thread of its own: meanwhile the clock ticks and Ctrl-C is heard at once."""
        outcome = {}

        def call():
            try:
                outcome["value"] = function(*arguments)
            except BaseException as error:
                outcome["error"] = error

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(TICK_S)
            self.bar.refresh()
        if "error" in outcome:
            raise outcome["error"]
        return outcome["value"]
