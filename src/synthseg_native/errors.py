"""The one exception that a user sees, with a code that says whether trying again can help."""

EXIT_CODES = {"usage": 2, "bad_input": 3, "oom": 4, "disk": 4, "timeout": 4, "killed": 4, "daemon": 4, "internal": 1}
TRANSIENT = frozenset({"oom", "disk", "timeout", "killed", "daemon"})


class SynthSegError(Exception):
    """A failure with a code of `EXIT_CODES` and a one-line message ``file: what is wrong: what to do``."""

    def __init__(self, code: str, message: str):
        if code not in EXIT_CODES:
            raise ValueError(f"unknown error code {code!r}")
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.code]

    @property
    def transient(self) -> bool:
        """True where the same call may succeed later (memory, disk, time), False where the input must change."""
        return self.code in TRANSIENT
