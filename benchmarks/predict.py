"""What the llvm engine would take on Arm processors that nobody had at hand, by the code that LLVM makes for them.

    sh scripts/launch.sh run llvm -- benchmarks/predict.py --loops       # spills, loads, cycles; nothing is timed
    sh scripts/launch.sh run llvm -- benchmarks/predict.py               # and the check on this machine: two minutes
    sh scripts/launch.sh run llvm -- benchmarks/predict.py --where       # where a scan's time goes here, by kernels

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
from collections.abc import Iterator
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
PART = 32, 256, 192  # that the ratio is measured on: as much of a scan as shows what rows and levels take
SIGMA = 0.5
REST = 6.0  # seconds of a scan's command outside of the kernels, as --where says here
REPEATS = 15
MCA_FROM = 17  # the first LLVM with a model of each processor below
PAGE = Path(__file__).parent / "predicted.md"


@dataclass(frozen=True)
class Target:
    """A processor to predict for.

    model : llvm-mca's name of its pipelines · units : of those, how many multiply · ghz : assumed; NaN of this machine
    decode, dispatch : instructions, and operations of its pipelines, that it takes a cycle by its maker's guide. LLVM's
    models have one number, which since LLVM 21 is what orders instructions best; 0 for that of the model
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
    found, label, lines = [], None, []
    for line in text.splitlines():
        code = line.split("#")[0] if "%" in line else line.split(";")[0].split("//")[0]
        if begin := re.match(r"([\w.$]+):", code):
            label, lines = begin[1], []
        elif branch := re.match(r"\s+(?:b\.\w+|b|cbn?z|tbn?z|j\w+)\s+(?:.*[\s,])?([\w.$]+)\s*$", code):
            if branch[1] == label:
                found.append(_loop(lines))
            label, lines = None, []
        elif code.strip() and not code.strip().startswith("."):
            lines.append(code)
    return [loop for loop in found if loop.fmas]


def _loop(lines):
    fmas = loads = stores = spills = 0
    for line in lines:
        word, _, rest = line.strip().partition("\t")
        fmas += word.startswith(("fmla", "vfmadd"))
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
    return max(told, (len(loop.lines) + 1) / target.decode) if target.decode else told


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
    """What llvm-mca says of the products of a pass. cycles : of all · fmas : of registers · of_loop : cycles of a round
    of each loop, by kernel and fmas"""

    cycles: float
    fmas: int
    of_loop: dict[tuple, tuple[Loop, float]]


def forecast(program: str, target: Target, network: Steps, shape: tuple[int, int, int]) -> Forecast:
    """The products of a pass on a processor."""
    of_loop: dict[tuple, tuple[Loop, float]] = {}
    work = list(products(network, shape, target.machine))
    for kernel in {product.kernel for product in work}:
        of_loop |= loops_of(program, target, kernel)
    total = sum(product.rounds * of_loop[product.kernel, product.fmas][1] for product in work)
    return Forecast(total, sum(product.rounds * product.fmas for product in work), of_loop)


def loops_of(program: str, target: Target, kernel: tuple) -> dict[tuple, tuple[Loop, float]]:
    """The product loops of a convolution by (kernel, fmas of a round), each with its cycles; the slowest one of those
    that are alike."""
    size, _, ups, block, _ = kernel
    wanted, found = {fmas_of(size, up, block) for up in ups}, {}
    for loop in loops(assembly(target, winograd.convolution, *kernel)):
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


def check(target: Target, ins: list[tuple[int, bool]], out: int) -> tuple[float, float]:
    """The products of a convolution, (channels, upsampled) -> out, for a chunk of a row: cycles measured, and the clock
    in GHz. The best of some times each, in turn: others may run here."""
    machine, size, ups = target.machine, 3, [up for _, up in ins]
    kernel = kernel_of(size, "elu", ups, out, machine)
    made = library.Library(machine)
    made.add("products", _write_products, *kernel)
    made.add("chain", _write_chain)
    call = made.compile()
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(
        sum(winograd.Winograd(size, ups).products(i) * n * out * 4 for i, (n, _) in enumerate(ins))
    )
    weights, plane = weights.astype(np.float32), zeros((1 << 20,))
    scratch = zeros((winograd.scratch_size(size, ins, out, machine.lanes),))
    table = np.full(6 * len(ins) + TILE, plane.ctypes.data)
    arrays = table, table, weights, plane, scratch
    sizes = [4, winograd.CHUNK, out, 96, 1, 96, *(n for channels, _ in ins for n in (channels, 96))]
    register, rounds, chain, best, clock = zeros((16,)), 20, 20_000, math.inf, 0.0
    for _ in range(REPEATS):
        best = min(
            best, _seconds(call["products"], *(array.ctypes.data for array in arrays), 0, rounds, *sizes) / rounds
        )
        clock = max(clock, 4 * 16 * chain / _seconds(call["chain"], register.ctypes.data, chain) / 1e9)
    return best * clock * 1e9, clock


def _seconds(call, *arguments):
    start = time.thread_time()
    call(*arguments)
    return time.thread_time() - start


def checked(program: str, target: Target, ins: list[tuple[int, bool]], out: int) -> tuple[float, float, float]:
    """Of the products of a convolution: cycles predicted, cycles measured, clock."""
    ups = [up for _, up in ins]
    kernel = kernel_of(3, "elu", ups, out, target.machine)
    of_loop, plan, predicted = loops_of(program, target, kernel), winograd.Winograd(3, ups), 0.0
    for number, (channels, up) in enumerate(ins):
        rounds = (
            plan.products(number) * winograd.CHUNK // (VECTORS * target.machine.lanes) * (out // kernel[3]) * channels
        )
        predicted += rounds * of_loop[kernel, fmas_of(3, up, kernel[3])][1]
    return predicted, *check(target, ins, out)


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
def timed_kernels() -> Iterator[dict]:
    """Processor seconds by (kernel, numbers of a row of its result, channels of it) of the calls inside."""
    spent, call = defaultdict(float), library.Kernel.__call__
    places = {"convolution": (8, 9), "pooling": (5, 6), "likelihood": (7, 10), "smoothing": (7, 8)}

    def timed(kernel, *arguments):
        start = time.thread_time()
        call(kernel, *arguments)
        z, channels = (arguments[n] for n in places[kernel.name.split("_")[0]])
        spent[kernel.name, z, channels] += time.thread_time() - start

    init = library.Kernel.__init__

    def named(kernel, engine, name):
        init(kernel, engine, name)
        kernel.name = name

    with mock.patch.object(library.Kernel, "__call__", timed), mock.patch.object(library.Kernel, "__init__", named):
        yield spent


def run_network(table: list, weights: Weights, machine: Machine, shape: tuple[int, int, int], passes: int = 1) -> dict:
    """Run passes of the network here with one thread; `timed_kernels` of it."""
    with timed_kernels() as spent, mock.patch.object(language, "this_machine", return_value=machine):
        engine = stream.Stream(steps_of(table), weights, threads=1)
        image = np.random.default_rng(1).random(shape, np.float32)
        for _ in range(passes):
            for _ in engine.run({"image": image}, SIGMA):
                pass
    return dict(spent)


def where(image: str, model: str) -> None:
    """Run the command here with one thread, and say where its time goes."""
    from synthseg_native import cli
    from synthseg_native.files import read_json

    with tempfile.TemporaryDirectory() as folder, timed_kernels() as spent:
        record, labels = Path(folder, "record.json"), Path(folder, "labels.nii.gz")
        words = ["--i", image, "--o", str(labels), "--model", model, "--record", str(record), "--engine", "llvm"]
        begin = time.process_time()
        if cli.main([*words, "--threads", "1"]):
            sys.exit(1)
        whole, seconds = time.process_time() - begin, read_json(record)["seconds"]
    for (name, z, channels), part in sorted(spent.items(), key=lambda item: (-item[0][1], item[0])):
        print(f"{part:7.2f}  {name}, rows of {z}, {channels} channels")
    kernels = sum(spent.values())
    print(f"{kernels:7.2f}  all kernels\n{whole - kernels:7.2f}  the rest of the processor's time (REST)")
    print("\n".join(f"{value:7.2f}  {phase}, by the clock" for phase, value in seconds.items()))


# The page ------------------------------------------------------------------------------------------------------------

TEXT = """\
# Predicted for Arm

**Predicted, not measured**: no Arm machine was at hand. Written by `benchmarks/predict.py` on {date};
[how, and what it leaves out](README.md#processors-that-nobody-had). Code by LLVM {llvm}, cycles by llvm-mca {mca}. A
network of SynthSeg 1.0's size, {shape} voxels, both passes, float32.

## A scan, by one core

{scans}
GFLOP/s: of the product loops, two operations a multiply-add. All kernels: {ratio} times the products, as on this
machine with NEON's registers. A scan: {rest} s more for all else, as measured on this machine. By definition: what
TensorFlow and torch would need, if they multiplied as fast without a pause. The definition's convolutions are
{definition} · 10⁹ multiply-adds, these are {executed} · 10⁹ (Winograd's, and those that are done twice).

## The product loops

{loops}
One round of each; registers of 4 numbers. Loads: of registers, pairs are two. Spilled: vectors on the stack. Units
would allow: cycles, if all units that multiply were always busy.

## This machine, held against its clock

`{cpu}`. The products of a convolution for 64 numbers of 4 × 4 rows, which lie in its caches: thousands of cycles. The
largest error is {worst}.

| registers × numbers | convolution | predicted | measured | off |
|---|---|---|---|---|
{checks}

All kernels of one pass over a part of a scan, {part}:

| registers × numbers | GHz, measured | products s, predicted | all kernels s, measured | ratio |
|---|---|---|---|---|
{ratios}
"""
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


def table_of_scans(forecasts: list[tuple[Target, Forecast]], ratio: float, definition: int) -> str:
    """What a scan takes on each processor. ratio : of all kernels' time to that of their products"""
    lines = [
        "| processor | GHz, assumed | GFLOP/s a core | products s | all kernels s | a scan s | by definition s |",
        "|---|---|---|---|---|---|---|",
    ]
    for target, said in forecasts:
        seconds, speed = PASSES * said.cycles / target.ghz / 1e9, speed_of(target, said)
        lines.append(
            f"| {target.name} | {target.ghz} | {speed:.0f} | {seconds:.0f} | {ratio * seconds:.0f} "
            f"| {ratio * seconds + REST:.0f} | {2 * PASSES * definition / speed / 1e9:.0f} |"
        )
    return "\n".join(lines) + "\n"


def speed_of(target: Target, said: Forecast) -> float:
    """GFLOP/s of the product loops."""
    return 2 * said.fmas * target.machine.lanes / said.cycles * target.ghz


def page(program: str, version: str) -> str:
    """Everything, as a page. Measures on this machine for two minutes."""
    table = layer_table(**NETWORK)
    network, weights = steps_of(table), random_weights(table)
    forecasts = [(target, forecast(program, target, network, SHAPE)) for target in ARM]
    definition = sum(product.definition for product in products(network, SHAPE, ARM[0].machine))
    executed = forecasts[0][1].fmas * ARM[0].machine.lanes
    checks, ratios, worst = [], [], 0.0
    for target in here():
        clock = 0.0
        for ins, out in CHECKED:
            predicted, measured, now = checked(program, target, ins, out)
            off, clock = predicted / measured - 1, max(clock, now)
            worst = max(worst, abs(off))
            what = " + ".join(f"{n}{' upsampled' if up else ''}" for n, up in ins)
            checks.append(
                f"| {target.name} | {what} → {out} | {predicted / 1e3:.1f} | {measured / 1e3:.1f} | {off:+.0%} |"
            )
        said = forecast(program, target, network, PART)
        spent = sum(run_network(table, weights, target.machine, PART).values())
        seconds = said.cycles / clock / 1e9
        ratios.append((target, clock, seconds, spent, spent / seconds))
    ratio = ratios[-1][-1]
    lines = [
        f"| {target.name} | {clock:.2f} | {seconds:.2f} | {spent:.2f} | {of_it:.2f} |"
        for target, clock, seconds, spent, of_it in ratios
    ]
    binding = language.llvm().binding
    told = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "llvm": ".".join(map(str, binding.llvm_version_info)),
        "mca": version,
        "shape": "×".join(map(str, SHAPE)),
        "part": "×".join(map(str, PART)),
        "scans": table_of_scans(forecasts, ratio, definition),
        "ratio": f"{ratio:.2f}",
        "rest": f"{REST:g}",
        "definition": f"{PASSES * definition / 1e9:.0f}",
        "executed": f"{PASSES * executed / 1e9:.0f}",
        "loops": table_of_loops(forecasts),
        "cpu": language.this_machine().cpu,
        "worst": f"{worst:.0%}",
        "checks": "\n".join(checks),
        "ratios": "\n".join(lines),
    }
    return TEXT.format(**told)


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
