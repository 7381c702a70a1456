"""The one exception that a user sees, with a code that says whether trying again can help.

Standard library only.
"""

import errno
from collections.abc import Sequence
from os import PathLike

# "disk": nothing can be written any more; "read": a drive, or its server, fails while one scan is read.
EXIT_CODES = {"usage": 2, "bad_input": 3, "internal": 1}
EXIT_CODES |= dict.fromkeys(("oom", "disk", "read", "timeout", "killed", "daemon"), 4)
TRANSIENT = frozenset(code for code, status in EXIT_CODES.items() if status == 4)


class SynthSegError(Exception):
    """A failure with a code of `EXIT_CODES` and a message ``file: what is wrong: what to do``, one line for one fault.

    Further lines are further faults. What a terminal would not print as it is, a newline in a file name say, is
    written out, so that a line stays a line.

    >>> error = SynthSegError("bad_input", "a\\nb.nii: the file is empty: copy or convert it again")
    >>> print(error)
    a\\nb.nii: the file is empty: copy or convert it again
    >>> error.exit_code, error.transient
    (3, False)
    """

    def __init__(self, code: str, *lines: str):
        if code not in EXIT_CODES:
            raise ValueError(f"unknown error code {code!r}")
        self.code = code
        self.message = "\n".join(printable(line) for line in lines)
        super().__init__(self.message)

    @property
    def exit_code(self) -> int:
        """The exit status of a command that ends so: 2 wrong use, 3 bad input, 4 the machine, 1 a fault of ours."""
        return EXIT_CODES[self.code]

    @property
    def transient(self) -> bool:
        """True where the same call may succeed later (memory, disk, time), False where the input must change."""
        return self.code in TRANSIENT


# A disk, or a user's part of it, that has no room left.
FULL = (errno.ENOSPC, errno.EDQUOT)


def of_system(error: OSError, place: str | PathLike) -> SynthSegError:
    """What an OSError of this process means. place: what it is about, where the error does not say.

    >>> print(of_system(OSError(errno.ENOSPC, "No space left on device"), "summary.tsv"))
    summary.tsv: No space left on device: make room and call again
    """
    full = error.errno in FULL
    remedy = "make room" if full else "mend this"
    text = f"{error.filename or place}: {error.strerror or error}: {remedy} and call again"
    return SynthSegError("disk" if full else "internal", text)


def few(names: Sequence[str], most: int = 3) -> str:
    """Some names, and how many more there are.

    >>> few(["a", "b"]), few(["a", "b", "c", "d"])
    ('a, b', 'a, b, c and 1 more')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def printable(text: str) -> str:
    """Text in which what a terminal would not print as it is, is written out.

    >>> print(printable("größe\\t1"))
    größe\\t1
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
