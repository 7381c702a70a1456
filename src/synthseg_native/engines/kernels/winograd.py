"""Convolutions as kernels (`language`), on planes as in `layout`.

They are Winograd's F(4x4, 3x3) along x and y, and plain along z (Lavin and Gray 2016, arXiv:1509.09308): a tile of
6 x 6 numbers gives 4 x 4 results with 36 products where the definition takes 144. Of kernel 5 they are F(4x4, 5x5): 64
products of a tile of 8 x 8 where the definition takes 400.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import Polynomial

from synthseg_native.engines.kernels.language import Program
from synthseg_native.engines.kernels.layout import TILE, VECTORS

SIZES = (3, 5)  # of kernels
# Points of a tile besides infinity, by the kernel's size, and whether a source is upsampled. With 1 and -1 among those
# of size 3, what is multiplied for -1 is always 0 in a tile of an upsampled image, and need not be computed. The others
# give half the rounding error: powers are nearer to 1 (measured on normal numbers: 0.6e-6 of a result's deviation for
# 1.1e-6, and 2.4e-6 for size 5, where none were better; direct sums 0.12e-6 and 0.17e-6).
AT = {
    (3, True): (0, 1, -1, 2, -2),
    (3, False): (0, 0.625, -0.625, 1.375, -1.375),
    (5, True): (0, 1, -1, 2, -2, 0.5, -0.5),
    (5, False): (0, 1, -1, 2, -2, 0.5, -0.5),
}
COLUMNS = 2**11  # factors of a kernel made at a time: so few that NumPy's library begins no threads of its own
CHUNK = 64  # numbers of a row done at a time: what a tile takes stays in the cache of one core


def upsampled_numbers(size: int, count: int) -> tuple[int, ...]:
    """How many times each number of an image is read, in turn, for `count` results of a kernel of this size on the
    image upsampled by 2 (nearest neighbour), the first one of them even.

    >>> upsampled_numbers(3, 4), upsampled_numbers(5, 2)
    ((1, 2, 2, 1), (2, 2, 2))
    """
    half = size // 2
    numbers = [n // 2 for n in range(-half, count + half)]
    return tuple(numbers.count(n) for n in sorted(set(numbers)))


def along_z(size: int, upsampled: bool) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """How a kernel goes along z, plainly: a matrix that makes factors of its numbers, and for each factor the result
    that it is for (0; of an upsampled image 0 and 1, an even one and the odd one after it) and the number that it is
    multiplied with, counted from the first one that is read.
    """
    if not upsampled:
        return np.eye(size), [(0, z) for z in range(size)]
    rows, reads = [], []
    for result in (0, 1):
        numbers = [(result + z - size // 2) // 2 + reach(size, upsampled) for z in range(size)]
        for number in sorted(set(numbers)):
            rows.append([float(n == number) for n in numbers])
            reads.append((result, number))
    return np.array(rows), reads


def minimal_filtering(points: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Winograd's minimal filtering of TILE results with so many points besides infinity, by a kernel g whose size
    follows from their number, as matrices (input, kernel, results): results @ ((kernel @ g) * (input @ d)) is the
    convolution of a tile d.

    Toom and Cook's: results and g are polynomials' coefficients, multiplied by their values at the points; transposed.
    """
    count = len(points) + 1
    size = count - TILE + 1
    whole = Polynomial.fromroots(points)
    bases = [Polynomial.fromroots([other for other in points if other != point]) for point in points]
    given = np.zeros((count, count))
    for row, polynomial in zip(given, [*bases, whole], strict=True):
        row[: len(polynomial.coef)] = polynomial.coef
    powers = np.vander(points, max(TILE, size), increasing=True)
    scale = [[base(point)] for base, point in zip(bases, points, strict=True)]
    kernel = np.concatenate([powers[:, :size] / scale, np.eye(size)[-1:]])
    return given, kernel, np.concatenate([powers[:, :TILE].T, np.eye(TILE)[:, -1:]], axis=1)


class Winograd:
    """How the convolution of one or more sources put together goes by tiles. size : of the kernel, of SIZES
    sources : for each whether it is upsampled by 2 (nearest neighbour) before

    count : numbers of a tile along an axis, and points · kernel, results : of `minimal_filtering`
    inputs : for each source the matrix that transforms its part of a tile, without rows that give 0
    points : for each the points that its rows are for
    pairs : all pairs of points (along x, along y), first the `common` ones, that every source has
    """

    def __init__(self, size: int, sources: Sequence[bool]):
        self.size, self.count = size, TILE + size - 1
        given, self.kernel, self.results = minimal_filtering(AT[size, any(sources)])
        # A tile of an upsampled image has its numbers from fewer.
        repeats = upsampled_numbers(size, TILE)
        spread = np.repeat(np.eye(len(repeats)), repeats, axis=0)
        inputs = [given @ spread if upsampled else given for upsampled in sources]
        count = range(self.count)
        self.points = [[point for point in count if matrix[point].any()] for matrix in inputs]
        self.inputs = [matrix[points] for matrix, points in zip(inputs, self.points, strict=True)]
        pairs = [(i, j) for i in count for j in count]
        here = [pair for pair in pairs if all(set(pair) <= set(points) for points in self.points)]
        self.pairs, self.common = here + [pair for pair in pairs if pair not in here], len(here)

    def products(self, source: int) -> int:
        """How many pairs of points a source has."""
        return len(self.points[source]) ** 2


def reach(size: int, upsampled: bool) -> int:
    """How many numbers before the first one of a tile its results read: of the source, upsampled or not.

    >>> reach(3, False), reach(3, True), reach(5, False), reach(5, True)
    (1, 1, 2, 1)
    """
    half = size // 2
    return -(-half // 2) if upsampled else half


def planes_read(size: int, upsampled: bool) -> int:
    """How many planes of a source the TILE planes of a result are computed of.

    >>> planes_read(3, False), planes_read(3, True), planes_read(5, False), planes_read(5, True)
    (6, 4, 8, 4)
    """
    return len(upsampled_numbers(size, TILE)) if upsampled else TILE + size - 1


def _wide(upsampled, lanes):
    """Numbers of a row that a chunk's results need, and the rest of a register."""
    return (CHUNK // 2 if upsampled else CHUNK) + lanes


def scratch_size(size: int, sources: Sequence[tuple[int, bool]], channels: int, lanes: int) -> int:
    """Numbers that a thread needs for itself. size : of the kernel · sources : (channels, upsampled) of each"""
    winograd = Winograd(size, [upsampled for _, upsampled in sources])
    inputs = sum(winograd.products(i) * n * _wide(upsampled, lanes) for i, (n, upsampled) in enumerate(sources))
    return inputs + winograd.count**2 * (channels * _wide(False, lanes) + lanes) + lanes


def winograd_weights(kernels: Sequence[np.ndarray], sources: Sequence[bool], block: int) -> np.ndarray:
    """The kernels (size, size, size, in, out) of all sources as `convolution` reads them.

    For each source (pairs of points, blocks of out, in, along z, out within a block); computed in float64.
    """
    winograd, packed = Winograd(len(kernels[0]), sources), []
    for kernel, upsampled, points in zip(kernels, sources, winograd.points, strict=True):
        pairs = [pair for pair in winograd.pairs if set(pair) <= set(points)]
        factors = np.array([np.outer(winograd.kernel[i], winograd.kernel[j]).ravel() for i, j in pairs])
        along, _ = along_z(winograd.size, upsampled)
        ins, outs = kernel.shape[3:]
        taps = np.tensordot(along, kernel.astype(np.float64), axes=(1, 2))  # (along z, x, y, in, out)
        taps = taps.reshape(*taps.shape[:3], ins, outs // block, block).transpose(1, 2, 4, 3, 0, 5)
        taps = taps.reshape(winograd.size**2, -1)  # in the order in which they are kept, before they become many
        made = np.empty((len(pairs), taps.shape[1]), dtype=np.float32)
        for start in range(0, taps.shape[1], COLUMNS):  # a part of every start: so much of it stays near
            some = slice(start, start + COLUMNS)
            made[:, some] = factors @ taps[:, some]
        packed.append(made.ravel())
    return np.concatenate(packed) if len(packed) > 1 else packed[0]


def rows_together(z: int, size: int, lanes: int) -> int:
    """How many tiles along y of rows of z numbers are done side by side in a chunk, so that short rows fill registers.
    They lie `size - 1` numbers apart, as much as their results read beyond their ends.

    >>> [rows_together(z, 3, 16) for z in (6, 12, 16, 24, 200)]
    [4, 2, 3, 1, 1]
    """
    step, apart = VECTORS * lanes, z + size - 1

    def used(count):
        return count * z / (-(-(count * apart - size + 1) // step) * step)

    return max(range(1, max(1, CHUNK // apart) + 1), key=lambda count: (round(used(count), 3), -count))


def convolution(
    program: Program, name: str, size: int, activation: str, sources: Sequence[bool], block: int, halo: int, added: bool
) -> None:
    """Write the convolution of a kernel with zero padding of one or more sources put together, then bias, the sum with
    another tensor where `added`, activation, and a factor and a summand per channel, for TILE planes of the result.

    size : of the kernel, of SIZES · activation : elu, relu, none
    sources : for each whether it is upsampled by 2 (nearest neighbour) before · block : see `block_of`
    halo : of all planes, size // 2 at least
    Pointers: table of planes, of a source from the first to the last that the results read, an upsampled one's without
    repetition; table of planes of the result; the same of what is added to it, laid out like it; `winograd_weights`;
    bias, factor, summand per channel; scratch.
    Integers: tiles along y, from and to; Y and Z of the result, its channels, its row; how many tiles are done side by
    side, and from one to the next in a chunk's rows (`rows_together`; 1 with an upsampled source); channels and row per
    source.
    """
    with program.kernel(name, 6, 8 + 2 * len(sources)) as code:
        _Convolution(code, size, activation, sources, block, halo, added).write()


@dataclass
class _Source:
    """What `_Convolution` knows of a source.

    matrix, points : as `Winograd` has them · wide : see `_wide` · table : its first plane's number · planes : pointers
    before : where a tile begins in its rows and planes, of zeros · beyond : numbers that results need besides their own
    scratch, weights : where its transformed tile and its weights begin
    taps : for each factor along z the registers of the result that its products go into, and where in a transformed
    row what it is multiplied with begins
    """

    upsampled: bool
    channels: object
    row: object
    matrix: np.ndarray
    points: list
    wide: int
    before: int
    beyond: int
    table: int
    planes: list
    scratch: object
    weights: object
    taps: list

    def here(self, code, value):
        """A place along an axis of the result, or a length, in the source."""
        return code.half(value) if self.upsampled else value


class _Convolution:
    """The code of a `convolution`."""

    def __init__(self, code, size, activation, sources, block, halo, added):
        self.code, self.activation, self.block, self.halo = code, activation, block, halo
        self.winograd = Winograd(size, sources)
        self.place = {pair: number for number, pair in enumerate(self.winograd.pairs)}
        self.wide, self.step = _wide(False, code.lanes), VECTORS * code.lanes
        self.table, self.places, others, self.weights, self.per_channel, self.scratch, *integers = code.arguments
        self.first, self.last, self.ys, self.zs, self.out, self.row, self.together, self.apart, *rest = integers
        self.results = [code.address(self.places, n) for n in range(TILE)]
        self.added = [code.address(others, n) for n in range(TILE)] if added else [None] * TILE
        self.sources, scratch, weights, table = [], code.int(0), code.int(0), 0
        for number, (upsampled, channels, row) in enumerate(zip(sources, rest[::2], rest[1::2], strict=True)):
            matrix, points = self.winograd.inputs[number], self.winograd.points[number]
            products, wide = self.winograd.products(number), _wide(upsampled, code.lanes)
            planes = [code.address(self.table, table + n) for n in range(matrix.shape[1])]
            _, reads = along_z(size, upsampled)
            source = _Source(
                upsampled=upsampled,
                channels=channels,
                row=row,
                matrix=matrix,
                points=points,
                wide=wide,
                before=halo - reach(size, upsampled),
                beyond=matrix.shape[1] - (TILE // 2 if upsampled else TILE),
                table=table,
                planes=planes,
                scratch=scratch,
                weights=weights,
                # Of an upsampled image the registers of a pair are one of even results, and one of odd ones.
                taps=[
                    [(of, at)] if upsampled else [(v, at + v * code.lanes) for v in range(VECTORS)] for of, at in reads
                ],
            )
            self.sources.append(source)
            scratch = code.add(scratch, code.times(channels, products * wide))
            weights = code.add(weights, code.times(channels, self.out, products * len(reads)))
            table += len(planes)
        # Then the sums of the products, and a tile of registers between the two steps of its transform.
        self.sums = scratch
        self.between = code.add(scratch, code.times(self.out, self.winograd.count**2 * self.wide))
        self.nowhere = code.add(self.between, self.winograd.count**2 * code.lanes)  # written, and never read

    def write(self):
        code, step = self.code, self.step
        # All numbers of a row, or of rows side by side.
        whole = code.add(code.times(code.add(self.together, -1), self.apart), self.zs)
        with code.loop(self.first, self.last, self.together) as tile, code.loop(0, whole, CHUNK) as chunk:
            y, z = code.times(tile.index, TILE), chunk.index
            rows = code.least(self.together, code.b.sub(self.last, tile.index))
            left = code.b.sub(whole, z)
            registers = code.b.sdiv(code.add(left, step - 1), code.int(step))
            numbers = code.least(code.times(registers, step), CHUNK)
            count = code.least(code.b.sub(self.zs, z), CHUNK)  # of one row
            for source in self.sources:
                self.transform(source, y, z, rows, count)
            self.start = y, z
            more = code.less(CHUNK, left)
            following = (
                code.b.select(more, y, code.add(y, code.times(self.together, TILE))),
                code.b.select(more, code.add(z, CHUNK), code.int(0)),
            )
            common, pairs = self.winograd.common, len(self.winograd.pairs)
            self.multiply(0, common, self.sources, numbers, following)
            if common < pairs:
                plain = [source for source in self.sources if not source.upsampled]
                self.multiply(common, pairs, plain, numbers, following)
            self.finish(y, z, rows, count)

    def transform(self, source, y, z, rows, count):
        """Read a tile's rows of a source, write what its products need."""
        code, size = self.code, len(source.planes)
        across = code.times(source.row, source.channels)
        y, z = (code.add(source.here(code, value), source.before) for value in (y, z))
        stop = code.add(source.here(code, code.add(count, int(source.upsampled))), source.beyond)
        with (
            code.loop(0, rows) as beside,
            code.loop(0, source.channels) as channel,
            code.loop(0, stop, code.lanes) as along,
        ):
            above = code.times(code.add(y, code.times(beside.index, TILE)), across)
            start = code.add(above, code.times(channel.index, source.row), z, along.index)
            for j in range(size):
                with code.apart():
                    column = [code.load(plane, start, code.times(across, j)) for plane in source.planes]
                    self.put_column(source.matrix, column, j, size)
            # The last register of a row is written beyond its end, where the next one's first is written after it.
            place = code.add(code.times(beside.index, self.apart), along.index)
            start = code.add(source.scratch, code.times(channel.index, source.wide), place)
            for i, first_point in enumerate(source.points):
                with code.apart():
                    line = self.line(i, size)
                    for vector, second_point in zip(code.combinations(source.matrix, line), source.points, strict=True):
                        pair = self.place[first_point, second_point]
                        code.store(vector, self.scratch, start, code.times(source.channels, pair * source.wide))

    def put_column(self, matrix, column, j, size):
        """The first step of a tile's transform: keep matrix @ column as column j of `size`."""
        for i, vector in enumerate(self.code.combinations(matrix, column)):
            self.code.store(vector, self.scratch, self.between, (i * size + j) * self.code.lanes)

    def line(self, i, size):
        """For the second step line i of what the first one kept."""
        places = [(i * size + j) * self.code.lanes for j in range(size)]
        return [self.code.load(self.scratch, self.between, place) for place in places]

    def multiply(self, start, stop, sources, numbers, following):
        """For each pair of points the sum over channels and z, for all channels of the result. Meanwhile what the
        following tile (y, z) reads is brought near, and where this one's results are written."""
        code, block = self.code, self.block
        with (
            code.loop(start, stop) as pair,
            code.loop(0, numbers, self.step) as along,
            code.loop(0, self.out, block) as outs,
        ):
            total = [code.constant(0)] * (block * VECTORS)
            for upsampled in (True, False):
                these = [source for source in sources if source.upsampled == upsampled]
                for source in these:
                    total = self.add_products(source, pair.index, along.index, outs.index, total, following)
                total = self.interleaved(total) if upsampled and these else total
            at = code.times(pair.index, self.out, self.wide)
            at = code.add(self.sums, at, code.times(outs.index, self.wide), along.index)
            for n in range(block):
                for v in range(VECTORS):
                    code.store(total[n * VECTORS + v], self.scratch, at, n * self.wide + v * code.lanes)

    def add_products(self, source, pair, along, outs, total, following):
        """Add what a source gives to `block` channels of the result, two registers of each."""
        code, block, taps, n = self.code, self.block, source.taps, source.channels
        values = code.add(source.scratch, code.times(pair, n, source.wide), source.here(code, along))
        factors = code.times(n, code.add(code.times(pair, self.out), outs), len(taps))
        factors = code.add(source.weights, factors)
        ahead = self.ahead(source, pair, along, outs, following)
        written = self.written(pair, along, outs)
        with code.loop(0, n, carry=total) as channel:
            code.prefetch(*ahead, code.times(channel.index, source.row))
            code.prefetch(*written, code.times(channel.index, self.row), write=True)
            at, inputs = code.add(values, code.times(channel.index, source.wide)), {}
            for tap, reads in enumerate(taps):
                here = code.add(factors, code.times(channel.index, len(taps) * block), tap * block)
                inputs |= {start: code.load(self.scratch, at, start) for _, start in reads if start not in inputs}
                for number in range(block):
                    factor = code.spread(self.weights, here, number)
                    for register, start in reads:
                        sum_ = number * VECTORS + register
                        channel.values[sum_] = code.fma(factor, inputs[start], channel.values[sum_])
        return channel.values

    def ahead(self, source, pair, along, outs, following):
        """A line of cache that the following tile (y, z) reads: each pair of points stands for a plane and a row of it,
        and the parts that a pair is done in for the lines of that row."""
        code, count = self.code, len(source.planes)
        plane = code.least(code.b.sdiv(pair, code.int(count)), count - 1)
        line = code.b.srem(code.b.sdiv(outs, code.int(self.block)), code.int(VECTORS))
        y, z = following
        z = code.add(z, along, code.times(line, code.lanes))
        y, z = source.here(code, y), source.here(code, z)
        y = code.add(y, code.b.srem(pair, code.int(count)))
        start = code.add(code.times(y, source.row, source.channels), z)
        return code.address(self.table, code.add(source.table, plane)), start

    def written(self, pair, along, outs):
        """A line of cache that this tile's results go to, as `ahead` shares them out."""
        code, (y, z) = self.code, self.start
        plane, row = code.b.srem(pair, code.int(TILE)), code.b.srem(code.b.sdiv(pair, code.int(TILE)), code.int(TILE))
        line = code.b.srem(code.b.sdiv(outs, code.int(self.block)), code.int(VECTORS))
        above = code.times(code.add(y, row, self.halo), self.out, self.row)
        start = code.add(above, z, along, code.times(line, code.lanes))
        return code.address(self.places, plane), start

    def interleaved(self, total):
        """From registers of even and of odd results to such of neighbours."""
        code, lanes = self.code, self.code.lanes
        lows, highs = ([lane // 2 + half + lane % 2 * lanes for lane in range(lanes)] for half in (0, lanes // 2))
        pairs = zip(total[::2], total[1::2], strict=True)
        return [code.pick(*pair, order) for pair in pairs for order in (lows, highs)]

    def finish(self, y, z, rows, count):
        """From the sums of a tile to its 4 x 4 results."""
        code, results, points = self.code, self.winograd.results, self.winograd.count
        with code.loop(0, rows) as beside, code.loop(0, self.out) as channel:
            y = code.add(y, code.times(beside.index, TILE))
            bias, factor, summand = (
                code.spread(self.per_channel, channel.index, code.times(self.out, kind)) for kind in range(3)
            )
            with code.loop(0, count, code.lanes) as along:
                place = code.add(code.times(beside.index, self.apart), along.index)
                at = code.add(self.sums, code.times(channel.index, self.wide), place)
                for j in range(points):
                    with code.apart():
                        starts = [code.times(self.out, self.place[i, j] * self.wide) for i in range(points)]
                        self.put_column(results, [code.load(self.scratch, at, start) for start in starts], j, points)
                here = code.add(z, along.index)
                within = [code.less(code.add(y, j), self.ys) for j in range(TILE)]
                for i, (plane, other) in enumerate(zip(self.results, self.added, strict=True)):
                    with code.apart():
                        line = self.line(i, points)
                        for j, vector in enumerate(code.combinations(results, line)):
                            above = code.times(code.add(y, j + self.halo), self.out, self.row)
                            at = code.add(above, code.times(channel.index, self.row), here, self.halo)
                            vector = code.plus(vector, bias)
                            vector = code.plus(vector, code.load(other, at)) if other is not None else vector
                            vector = code.fma(code.activated(vector, self.activation), factor, summand)
                            vector = code.inside(vector, here, self.zs)
                            # Rows outside of the volume are zeros already, and stay that.
                            code.store_if(within[j], vector, (plane, at), (self.scratch, self.nowhere))
