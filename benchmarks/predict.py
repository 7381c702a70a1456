"""What the llvm engine would take on Arm processors that nobody had at hand, by the code that LLVM makes for them.

    sh scripts/launch.sh run llvm -- benchmarks/predict.py --loops           # spills, loads, cycles; nothing is timed
    sh scripts/launch.sh run llvm -- benchmarks/predict.py                   # and the check on this machine: 2 minutes
    sh scripts/launch.sh run llvm -- benchmarks/predict.py --where scan.nii  # where a scan's time goes here, by kernels

The kernels of a full-size network are compiled for each processor as they would be there. llvm-mca, LLVM's model of
processors' pipelines, says how many cycles a round of each product loop takes. The same is said of this machine, and
held against its clock. See README.md here.
"""

import argparse
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import numpy as np  # noqa: E402

from synthseg_native.engines.kernels import language, library, stream, winograd  # noqa: E402
from synthseg_native.engines.kernels.language import Machine  # noqa: E402
from synthseg_native.engines.kernels.layout import TILE, VECTORS, block_of, zeros  # noqa: E402
from synthseg_native.engines.kernels.steps import Steps, steps_of  # noqa: E402
from synthseg_native.networks.layers import Weights, layer_table  # noqa: E402

NETWORK = {"levels": 5, "features": 24, "labels": 32}  # SynthSeg 1.0's; 2.0 has a label more
SHAPE = 192, 256, 192
PASSES = 2  # the scan and its mirror image
PART = 64, 64, 192  # that the ratio is measured on: whole rows, and calls so short that others often let one be
PART_PASSES = 8
SCANS = 3  # by --where
SIGMA = 0.5
REST = 5.4  # seconds of a scan's command outside of the kernels, as --where says here
ROUNDS, REPEATS = 60, 20
MCA_FROM = 17  # the first LLVM with a model of each processor below
PAGE = Path(__file__).parent / "predicted.md"


@dataclass(frozen=True)
class Target:
    """A processor to predict for.

    model : llvm-mca's name of its pipelines · units : of those, how many multiply · ghz : assumed; NaN of this machine
    decode, dispatch : instructions, and operations of its pipelines, that it takes a cycle by its maker's guide. LLVM's
    models have one number, in LLVM 22 the one that orders instructions best; 0 for that of the model
    """

    name: str
    machine: Machine
    triple: str
    model: str
    units: int = 2
    ghz: float = math.nan
    decode: int = 0
    dispatch: int = 0


def neon(cpu: str, triple: str = "aarch64-unknown-linux-gnu", **more) -> Target:
    """An Arm processor, as `language.this_machine` describes one there."""
    return Target(cpu, Machine(4, 32, cpu), triple, cpu, **more)


# Clocks: of M1's fast cores, of Graviton2, of Graviton4. For M1 LLVM has the pipelines of an older Apple processor,
# with three units that multiply where M1 has four: what it says is too slow.
ARM = (
    neon("apple-m1", "arm64-apple-macosx12.0", units=3, ghz=3.2),
    neon("neoverse-n1", units=2, ghz=2.5, decode=4, dispatch=8),
    neon("neoverse-v2", units=4, ghz=2.8, decode=8, dispatch=16),
)


# The code ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loop:
    """A loop without another one in it. Counts are of one round.

    fmas : multiply-adds of whole registers · loads : registers filled from memory, pairs counted as two
    stores : the same to memory · spills : those of both that are vectors on the stack · lines : without the branch
    """

    fmas: int
    loads: int
    stores: int
    spills: int
    lines: tuple[str, ...]


def assembly(target: Target, write, *arguments) -> str:
    """The assembly of the kernel that write(program, name, *arguments) writes, as `library` compiles it."""
    binding = language.llvm().binding
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    program = language.Program(target.machine)
    write(program, "kernel", *arguments)
    module = binding.parse_assembly(str(program.module))
    module.triple = target.triple
    machine = binding.Target.from_triple(target.triple).create_target_machine(
        cpu=target.machine.cpu, features=target.machine.features, opt=2
    )
    return machine.emit_assembly(module)


def loops(text: str) -> list[Loop]:
    """The innermost loops of an assembly that multiply and add."""
    found = [_loop(lines) for label, lines, target in _blocks(text) if label and label == target]
    return [loop for loop in found if loop.fmas]


def besides(text: str, fmas: int) -> Loop:
    """All of an assembly but its loops of so many multiply-adds, as if each line were done once in a round."""
    lines = []
    for label, block, target in _blocks(text):
        if label != target or _loop(block).fmas != fmas:
            lines += block
    return _loop(lines)


def _blocks(text):
    """The code between labels and branches: (label, or None; lines; label that the branch after them leads to)."""
    label, lines = None, []
    for line in text.splitlines():
        code = line.split("#")[0] if "%" in line else line.split(";")[0].split("//")[0]
        if begin := re.match(r"([\w.$]+):", code):
            yield label, lines, None
            label, lines = begin[1], []
        elif branch := re.match(r"\s+(?:b|b\.\w+|cbn?z|tbn?z|j\w+|ret\w*)\b(?:.*[\s,])?([\w.$]+)?\s*$", code):
            yield label, lines, branch[1]
            label, lines = None, []
        elif code.strip() and not code.strip().startswith("."):
            lines.append(code)


def _loop(lines):
    fmas = loads = stores = spills = 0
    for line in lines:
        word, _, rest = line.strip().partition("\t")
        fmas += word.startswith(("fmla", "fmls", "vfm", "vfnm"))
        arm = word.startswith(("ld", "st"))
        if word.startswith(("prefetch", "lea")) or not (arm or "(%" in rest):
            continue
        written = word.startswith("st") if arm else rest.endswith(")")
        number = 2 if word.startswith(("ldp", "stp")) else 1
        loads, stores = loads + number * (not written), stores + number * written
        # x29 leads to the stack on macOS; on Linux it may be any pointer, and what it leads to count too much.
        spills += bool(re.search(r"^q.*\[(sp|x29)\b|mm.*\(%rsp|\(%rsp.*mm", rest))
    return Loop(fmas, loads, stores, spills, tuple(lines))


def llvm_mca() -> tuple[str, str]:
    """The newest llvm-mca that is there, and its version."""
    names = [f"llvm-mca-{number}" for number in range(40, MCA_FROM - 1, -1)]
    for program in filter(None, map(shutil.which, [*names, "llvm-mca"])):
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        version = re.search(r"version (\d+)\S*", said)
        if version and int(version[1]) >= MCA_FROM:
            return program, version[0].removeprefix("version ")
    sys.exit(f"llvm-mca {MCA_FROM} or later is not on the path: install LLVM's tools (Debian: llvm-19)")


def cycles(program: str, target: Target, loop: Loop, rounds: int = 200) -> float:
    """How many cycles a round takes, by llvm-mca: all it reads lies in the first cache."""
    command = [program, f"-mtriple={target.triple}", f"-mcpu={target.model}", f"-iterations={rounds}"]
    command += [f"-dispatch={target.dispatch}"] * bool(target.dispatch)
    done = subprocess.run(command, input="\n".join(loop.lines), capture_output=True, text=True, check=True)
    told = int(re.search(r"Total Cycles: +(\d+)", done.stdout)[1]) / rounds
    return max(told, len(loop.lines) / target.decode) if target.decode else told


# The work ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """What one source adds to the products of a convolution, in a pass.

    kernel : arguments of `winograd.convolution` · fmas : multiply-adds of registers in a round of its loop · rounds :
    how often that runs · definition : multiply-adds of numbers by the definition of the convolution, done once
    """

    kernel: tuple
    fmas: int
    rounds: int
    definition: int


def products(network: Steps, shape: tuple[int, int, int], machine: Machine) -> Iterator[Product]:
    """All products of a pass over a scan of this shape."""
    times = _times(network)
    channels = {name: step.layer.channels for name, step in network.steps.items()}
    channels[network.source] = len(network.inputs)
    for name, step in network.steps.items():
        if step.layer.kind != "conv":
            continue
        x, y, z = (n >> step.level for n in shape)
        size, out = step.layer.weights["kernel"][0], step.layer.channels
        ups = [up for _, up in step.sources]
        kernel = kernel_of(size, step.layer.activation, ups, out, machine)
        together = 1 if any(ups) else winograd.rows_together(z, size, machine.lanes)
        numbers, width = (together - 1) * (z + size - 1) + z, VECTORS * machine.lanes
        registers = sum(-(-min(winograd.CHUNK, numbers - at) // width) for at in range(0, numbers, winograd.CHUNK))
        tiles = math.ceil(x / TILE) * math.ceil(math.ceil(y / TILE) / together)
        plan = winograd.Winograd(size, ups)
        for number, (source, up) in enumerate(step.sources):
            rounds = tiles * plan.products(number) * registers * (out // kernel[3]) * channels[source]
            definition = x * y * z * size**3 * channels[source] * out
            yield Product(kernel, fmas_of(size, up, kernel[3]), times[name] * rounds, definition)


def kernel_of(size: int, activation: str, ups: list[bool], out: int, machine: Machine) -> tuple:
    """Arguments of `winograd.convolution`: size, activation, sources, block, halo."""
    return size, activation, tuple(ups), block_of(out, machine), size // 2


def fmas_of(size: int, upsampled: bool, block: int) -> int:
    """How many multiply-adds of registers a round of a source's loop has; they tell the loops of a kernel apart."""
    return len(winograd.along_z(size, upsampled)[1]) * (1 if upsampled else VECTORS) * block


def _times(network):
    """How often each step is done in a pass: what is not kept whole once for each that reads it."""
    times = defaultdict(int, {network.read: 1})
    for name, step in reversed(network.steps.items()):
        times[name] = 1 if step.whole else times[name]
        for source, _ in step.sources:
            times[source] += times[name]
    return times


@dataclass
class Forecast:
    """What llvm-mca says of a pass.

    cycles : of all products · fmas : multiply-adds of registers · of_loop : each product loop and the cycles of a round
    of it, by kernel and fmas · besides : cycles of all else in a convolution, each line once
    """

    cycles: float
    fmas: int
    of_loop: dict[tuple, tuple[Loop, float]]
    besides: float


def forecast(program: str, target: Target, network: Steps, shape: tuple[int, int, int]) -> Forecast:
    """The products of a pass on a processor."""
    of_loop: dict[tuple, tuple[Loop, float]] = {}
    work = list(products(network, shape, target.machine))
    for kernel in {product.kernel for product in work}:
        of_loop |= loops_of(program, target, kernel)
    total = sum(product.rounds * of_loop[product.kernel, product.fmas][1] for product in work)
    kernel = kernel_of(3, "elu", [False], NETWORK["features"], target.machine)
    text = assembly(target, winograd.convolution, *kernel, False)
    other = cycles(program, target, besides(text, fmas_of(3, False, kernel[3])), rounds=20)
    return Forecast(total, sum(product.rounds * product.fmas for product in work), of_loop, other)


def loops_of(program: str, target: Target, kernel: tuple) -> dict[tuple, tuple[Loop, float]]:
    """The product loops of a convolution by (kernel, fmas of a round), each with its cycles; the slowest one of those
    that are alike."""
    size, _, ups, block, _ = kernel
    wanted, found = {fmas_of(size, up, block) for up in ups}, {}
    for loop in loops(assembly(target, winograd.convolution, *kernel, False)):
        if loop.fmas in wanted:
            both = loop, cycles(program, target, loop)
            found[kernel, loop.fmas] = max(found.get((kernel, loop.fmas), both), both, key=lambda pair: pair[1])
    return found


# This machine --------------------------------------------------------------------------------------------------------


def here() -> list[Target]:
    """This machine, as kernels are made for it, and with narrower registers; last as NEON has them, where it can."""
    machine = language.this_machine()
    triple = language.llvm().binding.get_default_triple()
    # LLVM's models of Intel's later processors have one unit for 512 bits, as its desktop ones do; servers have two.
    wide = Target("", machine, triple, "skylake-avx512" if machine.lanes == 16 else machine.cpu)
    shapes = [(machine.lanes, machine.registers)]
    shapes += [(8, 16), (4, 32)] if machine.lanes == 16 else [(4, 16)] if machine.lanes == 8 else []
    return [
        replace(
            wide,
            name=f"this machine, {registers} × {lanes}",
            machine=replace(machine, lanes=lanes, registers=registers),
        )
        for lanes, registers in shapes
    ]


class _Products(winograd._Convolution):
    """The products of a convolution without its transforms, again and again."""

    def write(self):
        code, pairs, common = self.code, len(self.winograd.pairs), self.winograd.common
        with code.loop(self.first, self.last):
            self.multiply(0, common, self.sources, code.int(winograd.CHUNK), (code.int(0), code.int(0)))
            if common < pairs:
                plain = [source for source in self.sources if not source.upsampled]
                self.multiply(common, pairs, plain, code.int(winograd.CHUNK), (code.int(0), code.int(0)))


def _write_products(program, name, size, activation, ups, block, halo):
    with program.kernel(name, 5, 8 + 2 * len(ups)) as code:
        _Products(code, size, activation, ups, block, halo).write()


def _write_chain(program, name):
    """Multiply-adds that wait for each other: four cycles each, on x86 since Skylake and Zen 2."""
    with program.kernel(name, 1, 1) as code:
        pointer, stop = code.arguments
        with code.loop(0, stop, carry=[code.load(pointer, 0)]) as chain:
            for _ in range(16):
                chain.values[0] = code.fma(chain.values[0], code.constant(0.5), code.constant(0.5))
        code.store(chain.values[0], pointer, 0)


def cycle_here(machine: Machine) -> Callable[[], float]:
    """A function that measures how many seconds a cycle takes while registers of this kind are in use."""
    made = library.Library(machine)
    made.add("chain", _write_chain)
    call, register, rounds = made.compile()["chain"], zeros((16,)), 4_000
    return lambda: _seconds(call, register.ctypes.data, rounds) / (4 * 16 * rounds)


def products_here(machine: Machine, ins: list[tuple[int, bool]], out: int) -> Callable[[], float]:
    """A function that measures the seconds of the products of a convolution, (channels, upsampled) -> out, for a chunk
    of a row."""
    size, ups = 3, [up for _, up in ins]
    made = library.Library(machine)
    made.add("products", _write_products, *kernel_of(size, "elu", ups, out, machine))
    call, plan, rounds = made.compile()["products"], winograd.Winograd(size, ups), 4
    rng = np.random.default_rng(0)
    factors = rng.standard_normal(sum(plan.products(i) * n * out * 4 for i, (n, _) in enumerate(ins)))
    plane, scratch = zeros((1 << 20,)), zeros((winograd.scratch_size(size, ins, out, machine.lanes),))
    arrays = np.full(6 * len(ins) + TILE, plane.ctypes.data), factors.astype(np.float32), plane, scratch
    sizes = [4, winograd.CHUNK, out, 96, 1, 96, *(n for channels, _ in ins for n in (channels, 96))]

    def measure():
        table, *others = (array.ctypes.data for array in arrays)
        return _seconds(call, table, table, *others, 0, rounds, *sizes) / rounds

    return measure


def _seconds(call, *arguments):
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def best_of(calls: list[Callable[[], float]]) -> list[float]:
    """The least that each of some functions gives, in turn again and again: others may run here."""
    best = [math.inf] * len(calls)
    for _ in range(ROUNDS):
        best = [min(least, *(call() for _ in range(REPEATS))) for least, call in zip(best, calls, strict=True)]
    return best


def predicted_products(program: str, target: Target, ins: list[tuple[int, bool]], out: int) -> float:
    """Cycles of what `products_here` measures."""
    ups = [up for _, up in ins]
    kernel = kernel_of(3, "elu", ups, out, target.machine)
    of_loop, plan, predicted = loops_of(program, target, kernel), winograd.Winograd(3, ups), 0.0
    for number, (channels, up) in enumerate(ins):
        rounds = (
            plan.products(number) * winograd.CHUNK // (VECTORS * target.machine.lanes) * (out // kernel[3]) * channels
        )
        predicted += rounds * of_loop[kernel, fmas_of(3, up, kernel[3])][1]
    return predicted


def random_weights(table: list, seed: int = 0) -> Weights:
    """Weights that keep features of order 1: no number becomes so small or large that it takes other time."""
    rng, weights = np.random.default_rng(seed), {}
    for layer in table:
        weights[layer.name] = {
            name: (rng.standard_normal(shape) / math.sqrt(np.prod(shape[:-1]))).astype(np.float32)
            if name == "kernel"
            else np.full(shape, float(name in ("gamma", "moving_variance")), np.float32)
            for name, shape in layer.weights.items()
        }
    return weights


@contextmanager
def timed_kernels() -> Iterator[list]:
    """Of every call inside: (kernel, numbers in a row of its result, channels that it reads first), its seconds."""
    spent, call, init = [], library.Kernel.__call__, library.Kernel.__init__
    places = {"convolution": (8, 13), "pooling": (5, 6), "likelihood": (7, 8), "smoothing": (7, 8)}

    def named(kernel, engine, name):
        init(kernel, engine, name)
        kernel.name = name

    def timed(kernel, *arguments):
        start = time.thread_time()  # others may take the processor meanwhile
        call(kernel, *arguments)
        used = time.thread_time() - start
        spent.append(((kernel.name, *(arguments[n] for n in places[kernel.name.split("_")[0]])), used))

    with mock.patch.object(library.Kernel, "__call__", timed), mock.patch.object(library.Kernel, "__init__", named):
        yield spent


def measure_network(
    table: list, weights: Weights, machine: Machine, shape: tuple[int, int, int]
) -> tuple[float, float]:
    """Seconds of the kernels of a pass here with one thread, of each call the best of some passes; and GHz."""
    (before,) = best_of([cycle_here(machine)])
    with timed_kernels() as spent, mock.patch.object(language, "this_machine", return_value=machine):
        engine = stream.Stream(steps_of(table), weights, threads=1)
        image = np.random.default_rng(1).random(shape, np.float32)
        for _ in range(PART_PASSES):
            for _ in engine.run({"image": image}, SIGMA):
                pass
    best = np.array([used for _, used in spent]).reshape(PART_PASSES, -1).min(axis=0)
    (after,) = best_of([cycle_here(machine)])
    return float(best.sum()), 1e-9 / min(before, after)


def where(image: str, model: str) -> None:
    """Run the command here with one thread, and say where its time goes. Of each call of a kernel the best one of all
    passes, of all else the best of all runs: others may run here."""
    from synthseg_native import cli

    rest, seconds = math.inf, []
    for _ in range(SCANS):
        with tempfile.TemporaryDirectory() as folder, timed_kernels() as spent:
            words = ["--i", image, "--o", str(Path(folder, "labels.nii.gz")), "--model", model, "--engine", "llvm"]
            begin = time.process_time()
            if cli.main([*words, "--threads", "1"]):
                sys.exit(1)
            rest = min(rest, time.process_time() - begin - sum(used for _, used in spent))
        seconds += [used for _, used in spent]
    best = PASSES * np.array(seconds).reshape(SCANS * PASSES, -1).min(axis=0)
    by_kernel = defaultdict(float)
    for (what, _), took in zip(spent, best, strict=False):  # of the first pass
        by_kernel[what] += took
    for (name, z, channels), took in sorted(by_kernel.items(), key=lambda item: (-item[0][1], item[0])):
        print(f"{took:7.2f}  {name}, rows of {z}, of {channels} channels")
    print(f"{best.sum():7.2f}  all kernels\n{rest:7.2f}  the rest of the processor's time (REST)")


# The page ------------------------------------------------------------------------------------------------------------

TEXT = """\
# Predicted for Arm

**Predicted, not measured**: no Arm machine was at hand. Written by `benchmarks/predict.py` on {date};
[how, and what it leaves out](README.md#processors-that-nobody-had). Code by LLVM {llvm}, cycles by llvm-mca {mca}. A
network of SynthSeg 1.0's size, {shape} voxels, both passes, float32.

## A scan, by one core

{scans}
GFLOP/s: of the product loops, two operations a multiply-add. All kernels: on this machine, with registers like NEON's,
they take {ratio} times as long as their products; what they do beside those is taken times llvm-mca's cycles of its
code there and here. A scan: {rest} s more for all else, as measured here. By definition: what TensorFlow and torch
would need, if they multiplied as fast without a pause. Their convolutions are {definition} · 10⁹ multiply-adds, those
of the llvm engine {executed} · 10⁹: Winograd's, and some done twice.

## The product loops

{loops}
One round of each; registers of 4 numbers. Loads: of registers, pairs are two (where M1 has one more, it is an integer:
the loop's end). Spilled: vectors on the stack. Units would allow: cycles, if all units that multiply were always busy.

## This machine, held against its clock

`{cpu}`. The products of a convolution for 64 numbers of 4 × 4 rows, which lie in its caches: thousands of cycles. The
largest error is {worst}.

{checks}
All kernels of one pass over a part of a scan, {part}. By the last row: predicted as for Arm processors, from registers
of 4 numbers to wider ones; what was measured beyond that are the caches, which wider ones wait for.

{kernels}"""
LOOPS = """\
| processor | source | multiply-adds | loads | spilled | cycles | units would allow |
|---|---|---|---|---|---|---|
"""
CHECKED = [([(24, False)], 24), ([(24, False), (48, True)], 24), ([(48, False)], 48)]


def table_of_loops(forecasts: list[tuple[Target, Forecast]]) -> str:
    """The product loops of each processor."""
    lines = []
    for target, said in forecasts:
        for (kernel, fmas), (loop, took) in sorted(said.of_loop.items(), key=str):
            upsampled = fmas == fmas_of(kernel[0], True, kernel[3])
            source = "upsampled" if upsampled else f"plain, {'beside an upsampled one' if any(kernel[2]) else 'alone'}"
            lines.append(
                f"| {target.name} | {source} | {fmas} | {loop.loads} | {loop.spills} | {took:.1f} "
                f"| {fmas / target.units:.1f} |"
            )
    return LOOPS + "\n".join(lines) + "\n"


@dataclass
class Measured:
    """This machine with registers of some kind. clock : GHz · said : of a pass over PART · seconds : its kernels'"""

    target: Target
    clock: float
    said: Forecast
    seconds: float

    @property
    def ratio(self) -> float:
        """Of all kernels' time to that of their products."""
        return self.seconds * self.clock * 1e9 / self.said.cycles

    def kernels(self, target: Target, said: Forecast) -> float:
        """Cycles of all kernels of a pass on another processor: what is beside the products there, by what it is here,
        by the code of either, and by how many registers it takes."""
        beside = said.besides / self.said.besides * self.target.machine.lanes / target.machine.lanes
        share = said.fmas * target.machine.lanes / (self.said.fmas * self.target.machine.lanes)
        return said.cycles + (self.ratio - 1) * self.said.cycles * share * beside


def table_of_scans(forecasts: list[tuple[Target, Forecast]], measured: Measured, definition: int) -> str:
    """What a scan takes on each processor."""
    lines = [
        "| processor | GHz, assumed | GFLOP/s a core | products s | all kernels s | a scan s | by definition s |",
        "|---|---|---|---|---|---|---|",
    ]
    for target, said in forecasts:
        both = said.cycles, measured.kernels(target, said)
        seconds, kernels = (PASSES * of / target.ghz / 1e9 for of in both)
        speed = speed_of(target, said)
        lines.append(
            f"| {target.name} | {target.ghz} | {speed:.0f} | {seconds:.0f} | {kernels:.0f} | {kernels + REST:.0f} "
            f"| {2 * PASSES * definition / speed / 1e9:.0f} |"
        )
    return "\n".join(lines) + "\n"


def table_of_kernels(found: list[Measured]) -> str:
    """All kernels of a pass over PART, on this machine; the last row is what others are told by."""
    lines = [
        "| registers × numbers | GHz, measured | products s, predicted | all kernels s, measured | by the last row s |",
        "|---|---|---|---|---|",
    ]
    for it in found:
        products, others = (of / it.clock / 1e9 for of in (it.said.cycles, found[-1].kernels(it.target, it.said)))
        lines.append(f"| {it.target.name} | {it.clock:.2f} | {products:.2f} | {it.seconds:.2f} | {others:.2f} |")
    return "\n".join(lines) + "\n"


def table_of_checks(program: str, targets: list[Target]) -> tuple[str, float]:
    """Products predicted and measured on this machine, and the largest error."""
    lines = ["| registers × numbers | convolution | predicted | measured | off |", "|---|---|---|---|---|"]
    worst = 0.0
    cycle = [cycle_here(target.machine) for target in targets]
    cases = [(target, ins, out) for target in targets for ins, out in CHECKED]
    best = best_of([*cycle, *(products_here(target.machine, ins, out) for target, ins, out in cases)])
    for (target, ins, out), seconds in zip(cases, best[len(targets) :], strict=True):
        took = seconds / best[targets.index(target)]
        predicted = predicted_products(program, target, ins, out)
        off = predicted / took - 1
        worst = max(worst, abs(off))
        what = " + ".join(f"{n}{' upsampled' if up else ''}" for n, up in ins)
        lines.append(f"| {target.name} | {what} → {out} | {predicted / 1e3:.1f} | {took / 1e3:.1f} | {off:+.0%} |")
    return "\n".join(lines) + "\n", worst


def speed_of(target: Target, said: Forecast) -> float:
    """GFLOP/s of the product loops."""
    return 2 * said.fmas * target.machine.lanes / said.cycles * target.ghz


def page(program: str, version: str) -> str:
    """Everything, as a page. Measures on this machine for two minutes."""
    table, targets = layer_table(**NETWORK), here()
    network, weights = steps_of(table), random_weights(table)
    forecasts = [(target, forecast(program, target, network, SHAPE)) for target in ARM]
    definition = sum(product.definition for product in products(network, SHAPE, ARM[0].machine))
    executed = forecasts[0][1].fmas * ARM[0].machine.lanes
    checks, worst = table_of_checks(program, targets)
    found = []
    for target in targets:
        seconds, clock = measure_network(table, weights, target.machine, PART)
        found.append(Measured(target, clock, forecast(program, target, network, PART), seconds))
    return TEXT.format(
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        llvm=".".join(map(str, language.llvm().binding.llvm_version_info)),
        mca=version,
        shape="×".join(map(str, SHAPE)),
        scans=table_of_scans(forecasts, found[-1], definition),
        ratio=f"{found[-1].ratio:.2f}",
        rest=f"{REST:g}",
        definition=f"{PASSES * definition / 1e9:.0f}",
        executed=f"{PASSES * executed / 1e9:.0f}",
        loops=table_of_loops(forecasts),
        cpu=targets[0].machine.cpu,
        worst=f"{worst:.0%}",
        checks=checks,
        part="×".join(map(str, PART)),
        kernels=table_of_kernels(found),
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--loops", action="store_true", help="print the product loops, time nothing")
    made.add_argument("--where", metavar="IMAGE", help="segment this image, and say which kernels take how long")
    made.add_argument("--model", default="synthseg1", help="with --where: the model (default: %(default)s)")
    return made


def main() -> int:
    """Run the command; returns the exit status."""
    arguments = parser().parse_args()
    if arguments.where:
        where(arguments.where, arguments.model)
        return 0
    program, version = llvm_mca()
    if arguments.loops:
        network = steps_of(layer_table(**NETWORK))
        print(table_of_loops([(target, forecast(program, target, network, SHAPE)) for target in ARM]), end="")
    else:
        PAGE.write_text(page(program, version), encoding="utf-8")
        print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
