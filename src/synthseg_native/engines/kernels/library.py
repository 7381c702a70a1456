"""Kernels compiled for one machine, and kept for the next process."""

import contextlib
import ctypes
import hashlib
import inspect
import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synthseg_native import shared_disk
from synthseg_native.engines.kernels.language import Program, llvm


class Library:
    """Kernels for one machine: `add` names them, `compile` makes them callable."""

    def __init__(self, machine):
        self.machine, self._kernels = machine, {}

    def add(self, name: str, write: Callable[..., None], *arguments: Any) -> None:
        """A kernel that `write(program, name, *arguments)` writes into a `Program`. A name stands for one."""
        self._kernels[name] = write, arguments

    def compile(self, cache: Path | None = None) -> dict:
        """Callables by name, which take addresses and integers.

        cache : a folder; what was compiled is kept there, a file each, and found again by the same code on the same
        machine
        """
        binding = llvm().binding
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        target = binding.Target.from_default_triple().create_target_machine(
            cpu=self.machine.cpu, features=self.machine.features, opt=2
        )
        engine, written = binding.create_mcjit_compiler(binding.parse_assembly(""), target), self._written()
        for name in self._kernels:
            file = cache and Path(cache) / f"{self._key(name, written)}.o"
            code = file and _kept(file)
            if not code:
                code = target.emit_object(self._module(name))
                if file:
                    _keep(file, code)
            engine.add_object_file(binding.ObjectFileRef.from_data(code))
        engine.finalize_object()
        return {name: Kernel(engine, name) for name in self._kernels}

    def _module(self, name):
        program = Program(self.machine)
        write, arguments = self._kernels[name]
        write(program, name, *arguments)
        module = llvm().binding.parse_assembly(str(program.module))
        module.verify()
        # LLVM's passes over the code would take as long again, and the kernels are no faster for them.
        return module

    def _written(self):
        """A digest of all that writes kernels: modules beside this one hold what the writers share."""
        writers = {Path(inspect.getsourcefile(write)) for write, _ in self._kernels.values()}
        files = sorted({*writers, *Path(__file__).parent.glob("*.py")})
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()

    def _key(self, name, written):
        """A name for what the compiled code of a kernel depends on."""
        write, arguments = self._kernels[name]
        told = llvm().__version__, llvm().binding.llvm_version_info, self.machine, name, write.__name__, arguments
        return hashlib.sha256(f"{written} {told!r}".encode()).hexdigest()


def may_run_code() -> bool:
    """Whether this system lets a process run code that it has made: some forbid it (SELinux, a hardened kernel), and
    would end the process when it is tried."""
    size = mmap.PAGESIZE
    page = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    place = ctypes.c_char.from_buffer(page)
    # A page that has been written, as compiled code is.
    place.value = b"\xc3"
    allowed = ctypes.CDLL(None).mprotect(
        ctypes.c_void_p(ctypes.addressof(place)), ctypes.c_size_t(size), mmap.PROT_READ | mmap.PROT_EXEC
    )
    del place
    page.close()
    return allowed == 0


def _kept(file: Path) -> bytes | None:
    """What `_keep` wrote; None where it is not there, not whole, or where another user could have put it.

    It is machine code: the hash in the same file says that it is whole and that of this name, not who wrote it.
    """
    with contextlib.suppress(OSError), file.open("rb") as stream:
        # Of the file that is open, too: its name may lead elsewhere by now.
        if shared_disk.is_private(file) and shared_disk.is_mine(os.fstat(stream.fileno())):
            digest, code = stream.read(32), stream.read()
            if _digest(file, code) == digest:
                return code
    return None


def _digest(file, code):
    return hashlib.sha256(file.name.encode() + code).digest()


def _keep(file, code):
    """Write a file, whole or not at all. A folder that cannot be written costs the next process a second, no more."""
    with contextlib.suppress(OSError):
        shared_disk.make_private(file.parent)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as stream:
            stream.write(_digest(file, code) + code)
        Path(stream.name).replace(file)


class Kernel:
    """A compiled kernel; it keeps its machine code in memory."""

    def __init__(self, engine, name):
        self._engine, self._address, self._call = engine, engine.get_function_address(name), None

    def __call__(self, *arguments):
        if self._call is None:
            self._call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(arguments))(self._address)
        self._call(*arguments)
