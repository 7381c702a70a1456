"""Vector code for this machine: a small language on LLVM's, compiled when an engine is built.

A kernel is a function of pointers and 64-bit integers that works on rows of float32, as many numbers at a time as a
register holds. Python writes it once, LLVM makes it for whatever processor it finds: AVX-512, AVX2, NEON. A kernel
called through ctypes holds no lock of Python, so threads run beside each other.
"""

import contextlib
import ctypes
import hashlib
import inspect
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synthseg_native import shared_disk
from synthseg_native.errors import SynthSegError


@dataclass(frozen=True)
class Machine:
    """lanes : float32 numbers in a register · registers : how many there are · cpu, features : LLVM's words for it
    fused : whether it multiplies and adds in one instruction"""

    lanes: int
    registers: int
    cpu: str = ""
    features: str = ""
    fused: bool = True


def _llvm():
    try:
        import llvmlite.binding
        import llvmlite.ir
    except ImportError as error:
        raise SynthSegError(
            "usage", f"llvmlite: cannot be imported ({error}): install the environment envs/openvino.txt"
        ) from error
    return llvmlite


def this_machine() -> Machine:
    """The processor that this runs on."""
    binding = _llvm().binding
    try:
        features = dict(binding.get_host_cpu_features())
    except RuntimeError:  # LLVM does not tell on every system; the name of the processor says it there
        features = {}
    words = ",".join(f"{'+' if there else '-'}{name}" for name, there in sorted(features.items()))
    cpu = binding.get_host_cpu_name()
    if features.get("avx512f"):
        # Some processors are known to prefer half a register.
        return Machine(16, 32, cpu, words + ",-prefer-256-bit")
    if features.get("avx"):
        return Machine(8, 16, cpu, words, fused=features.get("fma", False))
    arm = binding.get_default_triple().startswith(("aarch64", "arm64"))
    return Machine(4, 32 if arm else 16, cpu, words, fused=arm)


class Library:
    """Kernels for one machine: `add` names them, `compile` makes them callable."""

    def __init__(self, machine):
        self.machine, self._kernels = machine, {}

    def add(self, name, write, *arguments):
        """A kernel that `write(program, name, *arguments)` writes into a `Program`. A name stands for one."""
        self._kernels[name] = write, arguments

    def compile(self, cache=None) -> dict:
        """Callables by name, which take addresses and integers.

        cache : a folder; what was compiled is kept there, and found again by the same code on the same machine
        """
        binding = _llvm().binding
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        target = binding.Target.from_default_triple().create_target_machine(
            cpu=self.machine.cpu, features=self.machine.features, opt=2
        )
        file = cache and Path(cache) / f"{self._key()}.o"
        code = file and _kept(file)
        if not code:
            code = target.emit_object(self._module())
            if file:
                _keep(file, code)
        engine = binding.create_mcjit_compiler(binding.parse_assembly(""), target)
        engine.add_object_file(binding.ObjectFileRef.from_data(code))
        engine.finalize_object()
        return {name: Kernel(engine, name) for name in self._kernels}

    def _module(self):
        program = Program(self.machine)
        for name, (write, arguments) in self._kernels.items():
            write(program, name, *arguments)
        module = _llvm().binding.parse_assembly(str(program.module))
        module.verify()
        # LLVM's passes over the code would take as long again, and the kernels are no faster for them.
        return module

    def _key(self):
        """A name for what the compiled code depends on."""
        # Modules beside this one hold what the writers share: sizes, layouts.
        writers = {Path(inspect.getsourcefile(write)) for write, _ in self._kernels.values()}
        files = sorted({*writers, *Path(__file__).parent.glob("*.py")})
        kernels = sorted((name, write.__name__, arguments) for name, (write, arguments) in self._kernels.items())
        told = repr((_llvm().__version__, _llvm().binding.llvm_version_info, self.machine, kernels)).encode()
        return hashlib.sha256(b"".join([told, *(path.read_bytes() for path in files)])).hexdigest()


def _kept(file: Path) -> bytes | None:
    """What `_keep` wrote; None where it is not there, not whole, or where another user could have put it.

    It is machine code: the hash in the same file says that it is whole, not who wrote it.
    """
    if not shared_disk.is_private(file):
        return None
    with contextlib.suppress(OSError):
        digest, code = file.read_bytes()[:32], file.read_bytes()[32:]
        if hashlib.sha256(code).digest() == digest:
            return code
    return None


def _keep(file, code):
    """Write a file, whole or not at all. A folder that cannot be written costs the next process a second, no more."""
    with contextlib.suppress(OSError):
        shared_disk.make_private(file.parent)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as stream:
            stream.write(hashlib.sha256(code).digest() + code)
        Path(stream.name).replace(file)


class Kernel:
    """A compiled kernel; it keeps its machine code in memory."""

    def __init__(self, engine, name):
        self._engine, self._address, self._call = engine, engine.get_function_address(name), None

    def __call__(self, *arguments):
        if self._call is None:
            self._call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(arguments))(self._address)
        self._call(*arguments)


class Program:
    """The code of several kernels before it is compiled."""

    def __init__(self, machine):
        self.machine, self.ir = machine, _llvm().ir
        self.module = self.ir.Module("kernels")

    @contextlib.contextmanager
    def kernel(self, name, pointers, integers):
        """Write a kernel of so many pointers and integers; yields its `Code`."""
        ir = self.ir
        arguments = [ir.PointerType()] * pointers + [ir.IntType(64)] * integers
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), arguments), name)
        for argument in function.args[:pointers]:
            argument.add_attribute("noalias")
        code = Code(self, function)
        yield code
        code.b.ret_void()


class Code:
    """The code of a kernel as it is written. Integers are Python's or the kernel's; vectors are registers."""

    def __init__(self, program, function):
        ir = program.ir
        self.ir, self.lanes, self._fused = ir, program.machine.lanes, program.machine.fused
        self._module, self._function = program.module, function
        self.integer, self.number, self.pointer = ir.IntType(64), ir.FloatType(), ir.PointerType()
        self.vector = ir.VectorType(self.number, self.lanes)
        self.whole = ir.VectorType(ir.IntType(32), self.lanes)
        self.b = ir.IRBuilder(function.append_basic_block("start"))
        self.arguments = list(function.args)

    # Integers --------------------------------------------------------------------------------------------------------

    def int(self, value):
        return self.ir.Constant(self.integer, value) if isinstance(value, int) else value

    def add(self, *values):
        """The sum of integers."""
        total = self.int(values[0])
        for value in values[1:]:
            total = self.b.add(total, self.int(value))
        return total

    def times(self, *values):
        """The product of integers."""
        total = self.int(values[0])
        for value in values[1:]:
            total = self.b.mul(total, self.int(value))
        return total

    def half(self, value):
        return self.b.ashr(self.int(value), self.int(1))

    def less(self, value, other):
        return self.b.icmp_signed("<", self.int(value), self.int(other))

    def least(self, value, other):
        return self.b.select(self.less(value, other), self.int(value), self.int(other))

    # Control ---------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def loop(self, start, stop, step=1, carry=()):
        """Repeat for start, start + step, ... below stop, once at least. carry : vectors handed from one round to the
        next: the loop's `values`, which its body replaces and which hold the result afterwards."""
        b, before = self.b, self.b.block
        body, after = self._function.append_basic_block("loop"), self._function.append_basic_block("after")
        b.branch(body)
        b.position_at_end(body)
        loop = Loop(b.phi(self.integer), [b.phi(value.type) for value in carry])
        phis = [loop.index, *loop.values]
        yield loop
        following = [self.add(loop.index, step), *loop.values]
        for phi, first, then in zip(phis, [self.int(start), *carry], following, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(then, b.block)
        b.cbranch(self.less(following[0], stop), body, after)
        b.position_at_end(after)

    @contextlib.contextmanager
    def apart(self):
        """A part of the code for which registers are given out by itself, so that it needs few."""
        with self.loop(0, 1):  # LLVM would join what follows without a loop
            yield

    # Memory: offsets count numbers -----------------------------------------------------------------------------------

    def address(self, table, index):
        """A pointer out of a table of pointers."""
        place = self.b.gep(table, [self.int(index)], source_etype=self.pointer)
        return self.b.load(place, typ=self.pointer)

    def load(self, pointer, *offset):
        return self.b.load(self._place(pointer, offset), typ=self.vector, align=4)

    def store(self, vector, pointer, *offset):
        self.b.store(vector, self._place(pointer, offset), align=4)

    def spread(self, pointer, *offset):
        """One number in all lanes."""
        return self._spread(self.b.load(self._place(pointer, offset), typ=self.number, align=4), self.vector)

    def prefetch(self, pointer, *offset):
        """Bring near, into the second cache, what is read soon. It may lie outside of what there is."""
        kinds = [self.pointer, *[self.ir.IntType(32)] * 3]
        call = self._function_of("llvm.prefetch.p0", self.ir.VoidType(), kinds)
        read, level, data = (self.ir.Constant(kinds[1], value) for value in (0, 2, 1))
        self.b.call(call, [self._place(pointer, offset), read, level, data])

    def _place(self, pointer, offset):
        return self.b.gep(pointer, [self.add(*offset)], source_etype=self.number)

    def _spread(self, scalar, kind):
        ir = self.ir
        first = self.b.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
        return self.b.shuffle_vector(first, first, ir.Constant(self.whole, [0] * self.lanes))

    # Vectors ---------------------------------------------------------------------------------------------------------

    def constant(self, value):
        return self.ir.Constant(self.vector, [float(np.float32(value))] * self.lanes)

    def pick(self, vector, other, lanes):
        """Lanes by their numbers in one vector followed by another."""
        return self.b.shuffle_vector(vector, other, self.ir.Constant(self.whole, lanes))

    def fma(self, a, b, c):
        """a * b + c, rounded once where the processor can."""
        return self._call("fma", a, b, c) if self._fused else self.plus(self.product(a, b), c)

    def plus(self, a, b):
        return self.b.fadd(a, b)

    def minus(self, a, b):
        return self.b.fsub(a, b)

    def product(self, a, b):
        return self.b.fmul(a, b)

    def quotient(self, a, b):
        return self.b.fdiv(a, b)

    def largest(self, a, b):
        return self.b.select(self.b.fcmp_ordered(">", a, b), a, b)

    def smallest(self, a, b):
        return self.b.select(self.b.fcmp_ordered("<", a, b), a, b)

    def combination(self, factors, vectors):
        """The sum of vectors times numbers; those times 0 are left out, one vector at least is not."""
        terms = [(factor, vector) for factor, vector in zip(factors, vectors, strict=True) if factor]
        terms.sort(key=lambda term: (abs(term[0]) != 1, term[0] < 0))  # plain sums first, and no sign to change
        total = None
        for factor, vector in terms:
            if total is None:
                total = vector if factor == 1 else self.product(vector, self.constant(factor))
            elif abs(factor) == 1:
                total = self.plus(total, vector) if factor == 1 else self.minus(total, vector)
            else:
                total = self.fma(vector, self.constant(factor), total)
        return total

    def inside(self, vector, index, stop, condition=None):
        """The vector with 0 in lanes index + lane >= stop, and everywhere where a condition does not hold."""
        left = self.b.trunc(self.b.sub(self.int(stop), self.int(index)), self.ir.IntType(32))
        lanes = self.ir.Constant(self.whole, list(range(self.lanes)))
        result = self.b.select(self.b.icmp_signed("<", lanes, self._spread(left, self.whole)), vector, self.constant(0))
        return result if condition is None else self.b.select(condition, result, self.constant(0))

    def exp(self, vector):
        """e to the power of numbers of at most 0, to 2e-7 of the result; below -87 that of -87.

        2^n e^r with r within half of log 2 (Cody and Waite: log 2 in two parts), e^r by its series to r^6.
        """
        vector = self.largest(vector, self.constant(-87))
        n = self._call("rint", self.product(vector, self.constant(1 / math.log(2))))
        high = float(np.float32(355 / 512))
        r = self.fma(n, self.constant(-high), vector)
        r = self.fma(n, self.constant(high - math.log(2)), r)
        total = self.constant(1 / math.factorial(6))
        for power in range(5, -1, -1):
            total = self.fma(total, r, self.constant(1 / math.factorial(power)))
        exponent = self.b.add(self.b.fptosi(n, self.whole), self.ir.Constant(self.whole, [127] * self.lanes))
        shift = self.ir.Constant(self.whole, [23] * self.lanes)
        return self.product(total, self.b.bitcast(self.b.shl(exponent, shift), self.vector))

    def elu(self, vector):
        """x above 0, e^x - 1 below."""
        below = self.minus(self.exp(self.smallest(vector, self.constant(0))), self.constant(1))
        return self.plus(self.largest(vector, self.constant(0)), below)

    def _call(self, name, *vectors):
        kinds = [self.vector] * len(vectors)
        return self.b.call(self._function_of(f"llvm.{name}.v{self.lanes}f32", self.vector, kinds), vectors)

    def _function_of(self, name, result, kinds):
        """One of LLVM's own functions, by its name."""
        function = self._module.globals.get(name)
        return function or self.ir.Function(self._module, self.ir.FunctionType(result, kinds), name)


@dataclass
class Loop:
    """index : the loop's integer · values : its carried vectors"""

    index: object
    values: list
