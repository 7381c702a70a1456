"""Vector code for this machine: a small language on LLVM's, compiled when an engine is built.

A kernel is a function of pointers and 64-bit integers that works on rows of float32, as many numbers at a time as a
register holds. Python writes it once, LLVM makes it for whatever processor it finds: AVX-512, AVX2, NEON. A kernel
called through ctypes holds no lock of Python, so threads run beside each other.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from synthseg_native.errors import SynthSegError

Value = Any  # of a kernel as it is written; LLVM's module is imported with the first of them
Integer = int | Value
EXPONENTIAL = 0.008312501, 0.04189033, 0.16667116, 0.4999923, 1, 1  # factors of r^5 to r^0; `Code._exp`


@dataclass(frozen=True)
class Machine:
    """lanes : float32 numbers in a register · registers : how many there are · cpu, features : LLVM's words for it
    fused : whether it multiplies and adds in one instruction"""

    lanes: int
    registers: int
    cpu: str = ""
    features: str = ""
    fused: bool = True


def llvm() -> Any:
    """llvmlite, with its two parts. Raises SynthSegError("usage") where it is not installed."""
    try:
        import llvmlite.binding
        import llvmlite.ir
    except (ImportError, OSError) as error:  # OSError: its library is missing, or damaged
        why = " ".join(str(error).split())
        raise SynthSegError(
            "usage", f"llvmlite: cannot be imported ({why}): install the environment envs/llvm.txt"
        ) from error
    return llvmlite


def this_machine() -> Machine:
    """The processor that this runs on."""
    binding = llvm().binding
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


class Program:
    """The code of several kernels before it is compiled."""

    def __init__(self, machine):
        self.machine, self.ir = machine, llvm().ir
        self.module = self.ir.Module("kernels")

    @contextlib.contextmanager
    def kernel(self, name: str, pointers: int, integers: int) -> "Iterator[Code]":
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

    def int(self, value: Integer) -> Value:
        """An integer of the kernel, from Python's too."""
        return self.ir.Constant(self.integer, value) if isinstance(value, int) else value

    def add(self, *values: Integer) -> Value:
        """The sum of integers."""
        total = self.int(values[0])
        for value in values[1:]:
            total = self.b.add(total, self.int(value))
        return total

    def times(self, *values: Integer) -> Value:
        """The product of integers."""
        total = self.int(values[0])
        for value in values[1:]:
            total = self.b.mul(total, self.int(value))
        return total

    def half(self, value: Integer) -> Value:
        """Half of an integer, rounded down."""
        return self.b.ashr(self.int(value), self.int(1))

    def less(self, value: Integer, other: Integer) -> Value:
        """Whether an integer is below another."""
        return self.b.icmp_signed("<", self.int(value), self.int(other))

    def least(self, value: Integer, other: Integer) -> Value:
        """The smaller one of two integers."""
        return self.b.select(self.less(value, other), self.int(value), self.int(other))

    # Control ---------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def loop(self, start: Integer, stop: Integer, step: Integer = 1, carry: Sequence[Value] = ()) -> "Iterator[Loop]":
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
    def apart(self) -> Iterator[None]:
        """A part of the code for which registers are given out by itself, so that it needs few."""
        with self.loop(0, 1):  # LLVM would join what follows without a loop
            yield

    # Memory: offsets count numbers -----------------------------------------------------------------------------------

    def address(self, table: Value, index: Integer) -> Value:
        """A pointer out of a table of pointers."""
        place = self.b.gep(table, [self.int(index)], source_etype=self.pointer)
        return self.b.load(place, typ=self.pointer)

    def load(self, pointer: Value, *offset: Integer) -> Value:
        """A register of numbers from memory."""
        return self.b.load(self._place(pointer, offset), typ=self.vector, align=4)

    def store(self, vector: Value, pointer: Value, *offset: Integer) -> None:
        """A register of numbers to memory."""
        self.b.store(vector, self._place(pointer, offset), align=4)

    def store_if(self, condition: Value, vector: Value, place: Sequence[Integer], other: Sequence[Integer]) -> None:
        """A register of numbers to one of two places, each a pointer and offsets."""
        places = [self._place(pointer, offset) for pointer, *offset in (place, other)]
        self.b.store(vector, self.b.select(condition, *places), align=4)

    def spread(self, pointer: Value, *offset: Integer) -> Value:
        """One number in all lanes."""
        return self._spread(self.b.load(self._place(pointer, offset), typ=self.number, align=4), self.vector)

    def prefetch(self, pointer: Value, *offset: Integer, write: bool = False) -> None:
        """Bring near, into the second cache, what is read or written soon. It may lie outside of what there is."""
        kinds = [self.pointer, *[self.ir.IntType(32)] * 3]
        call = self._function_of("llvm.prefetch.p0", self.ir.VoidType(), kinds)
        words = [self.ir.Constant(kinds[1], value) for value in (int(write), 2, 1)]  # 2: the second cache, 1: data
        self.b.call(call, [self._place(pointer, offset), *words])

    def _place(self, pointer, offset):
        return self.b.gep(pointer, [self.add(*offset)], source_etype=self.number)

    def _spread(self, scalar, kind):
        ir = self.ir
        first = self.b.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
        return self.b.shuffle_vector(first, first, ir.Constant(self.whole, [0] * self.lanes))

    # Vectors ---------------------------------------------------------------------------------------------------------

    def constant(self, value: float) -> Value:
        """A number in all lanes."""
        return self.ir.Constant(self.vector, [float(np.float32(value))] * self.lanes)

    def pick(self, vector: Value, other: Value, lanes: list[int]) -> Value:
        """Lanes by their numbers in one vector followed by another."""
        return self.b.shuffle_vector(vector, other, self.ir.Constant(self.whole, lanes))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, rounded once where the processor can."""
        return self._call("fma", a, b, c) if self._fused else self.plus(self.product(a, b), c)

    def plus(self, a: Value, b: Value) -> Value:
        """a + b"""
        return self.b.fadd(a, b)

    def minus(self, a: Value, b: Value) -> Value:
        """a - b"""
        return self.b.fsub(a, b)

    def product(self, a: Value, b: Value) -> Value:
        """a * b"""
        return self.b.fmul(a, b)

    def quotient(self, a: Value, b: Value) -> Value:
        """a / b"""
        return self.b.fdiv(a, b)

    def largest(self, a: Value, b: Value) -> Value:
        """The larger one of each two numbers; what is no number (NaN) in a stays that."""
        return self.b.select(self.b.fcmp_ordered("<", a, b), b, a)

    def largest_of_both(self, a: Value, b: Value) -> Value:
        """The larger one of each two numbers; NaN where either is."""
        return self.b.select(self.b.fcmp_unordered("uno", a, a), a, self.largest(b, a))

    def smallest(self, a: Value, b: Value) -> Value:
        """The smaller one of each two numbers; NaN in a stays that."""
        return self.b.select(self.b.fcmp_ordered("<", b, a), b, a)

    def combination(self, factors: Sequence[float], vectors: Sequence[Value]) -> Value:
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

    def combinations(self, matrix: np.ndarray, vectors: Sequence[Value]) -> list[Value]:
        """matrix @ vectors, a vector for each row. What columns or rows share that differ by signs alone is computed
        once: in Winograd's matrices those are of points a and -a."""
        matrix, vectors = np.array(matrix, dtype=np.float64), list(vectors)
        for left, right in itertools.combinations(range(matrix.shape[1]), 2):
            both = np.abs(matrix[:, left]) == np.abs(matrix[:, right])
            if both.all() and np.count_nonzero(matrix[:, left]) > 1:
                first, second = vectors[left], vectors[right]
                vectors[left], vectors[right] = self.plus(first, second), self.minus(first, second)
                unlike = matrix[:, left] != matrix[:, right]
                matrix[:, right] = np.where(unlike, matrix[:, left], 0)
                matrix[unlike, left] = 0
        found = {}
        for one, other in itertools.combinations(range(len(matrix)), 2):
            row, unlike = matrix[one], matrix[one] != matrix[other]
            alike = (row != 0) & ~unlike
            if one in found or not (unlike.any() and alike.any() and (np.abs(row) == np.abs(matrix[other])).all()):
                continue
            even, factor = self.combination(row * alike, vectors), row[unlike][-1]
            odd = self.combination(row * unlike / factor, vectors)
            found[one], found[other] = (self.combination((1, sign * factor), (even, odd)) for sign in (1, -1))
        return [found[n] if n in found else self.combination(row, vectors) for n, row in enumerate(matrix)]

    def inside(self, vector: Value, index: Integer, stop: Integer) -> Value:
        """The vector with 0 in lanes index + lane >= stop."""
        left = self.b.trunc(self.b.sub(self.int(stop), self.int(index)), self.ir.IntType(32))
        lanes = self.ir.Constant(self.whole, list(range(self.lanes)))
        return self.b.select(self.b.icmp_signed("<", lanes, self._spread(left, self.whole)), vector, self.constant(0))

    def exp(self, vector: Value) -> Value:
        """e to the power of numbers of at most 0, to 3e-7 of the result; below -86 that of -86, and NaN of NaN."""
        return self.product(*self._exp(vector))

    def _exp(self, vector):
        """e^r and 2^n, whose product is e to the power of a vector: n a whole number, r within half of log 2.

        e^r by a polynomial with the smallest error of its degree, 1.05e-7, whose first two coefficients are 1, so that
        numbers near 0 stay exact. A number to which 1.5 * 2^23 was added has its whole part in its last bits.
        """
        vector = self.largest(vector, self.constant(-86))
        shift = 1.5 * 2**23 + 127  # 127 is the exponent's bits of 2^0
        shifted = self.fma(vector, self.constant(1 / math.log(2)), self.constant(shift))
        n = self.minus(shifted, self.constant(shift))
        # Where a product is rounded before it is added, log 2 is taken in two parts (Cody and Waite).
        part = math.log(2) if self._fused else 355 / 512
        r = self.fma(n, self.constant(-part), vector)
        r = r if self._fused else self.fma(n, self.constant(part - math.log(2)), r)
        total = self.constant(EXPONENTIAL[0])
        for factor in EXPONENTIAL[1:]:
            total = self.fma(total, r, self.constant(factor))
        bits = self.ir.Constant(self.whole, [23] * self.lanes)
        return total, self.b.bitcast(self.b.shl(self.b.bitcast(shifted, self.whole), bits), self.vector)

    def elu(self, vector: Value) -> Value:
        """x above 0, e^x - 1 below."""
        below = self.fma(*self._exp(self.smallest(vector, self.constant(0))), self.constant(-1))
        return self.plus(self.largest(vector, self.constant(0)), below)

    def activated(self, vector: Value, activation: str) -> Value:
        """What an activation makes of a register: elu, relu or none."""
        if activation == "elu":
            return self.elu(vector)
        return self.largest(vector, self.constant(0)) if activation == "relu" else vector

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
