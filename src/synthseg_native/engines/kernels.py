"""The layers of the finest levels as kernels (`vector`), on rows of features along the last axis.

A plane of features (Y, Z) is an array (rows, channels, row) of float32: each row (y, channel) has its Z numbers between
zeros, and rows of zeros lie before and after those of the volume. So a convolution reads its zero padding there, and
registers go along z whatever the number of channels. A kernel takes planes by their addresses, each may lie anywhere.
See `Layout` for the sizes.

Convolutions are Winograd's F(4x4, 3x3) along x and y, and plain along z (Lavin and Gray 2016, arXiv:1509.09308): a tile
of 6 x 6 numbers gives 4 x 4 results with 36 products where the definition takes 144.
"""

from dataclasses import dataclass

import numpy as np

TILE = 4  # results of a tile along x and along y
# Winograd's minimal filtering with the points 0, 1, -1, 2, -2: results = RESULTS @ ((KERNEL @ g) * (INPUT @ d))
INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
KERNEL = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
RESULTS = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
# A tile of an image upsampled by 2 has its 6 numbers from 4, and its third transformed one is always 0.
UPSAMPLED = INPUT @ np.repeat(np.eye(4), [1, 2, 2, 1], axis=0)
# Along z, plain; of an image upsampled by 2 an even result has two factors for two numbers, and the odd one after it.
ALONG = {False: np.eye(3), True: np.array([[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 1]])}
POINTS = len(INPUT)
CHUNK = 64  # numbers of a row done at a time: what a tile takes stays in the cache of one core
VECTORS = 2  # registers of a row in the innermost loop; of an upsampled image one of even results, one of odd ones


@dataclass(frozen=True)
class Layout:
    """How a plane (Y, Z) of features lies in memory.

    lanes : numbers in a register · halo : zeros before a row, rows of zeros before those of the volume
    """

    shape: tuple
    channels: int
    lanes: int
    halo: int = 1

    @property
    def row(self):
        """Numbers in a row: whole registers are written, and read from beyond its end."""
        step = VECTORS * self.lanes
        return -(-self.shape[1] // step) * step + max(self.lanes, 2 * self.halo)

    @property
    def rows(self):
        return -(-self.shape[0] // TILE) * TILE + 2 * self.halo

    @property
    def plane(self) -> tuple:
        return self.rows, self.channels, self.row

    def inside(self, planes):
        """The volume's part (planes, Y, Z, channels) of an array of planes."""
        (y, z), halo = self.shape, self.halo
        return planes[:, halo : halo + y, :, halo : halo + z].swapaxes(2, 3)


def zeros(shape, ahead=0):
    """An array of float32 zeros, the number after the first `ahead` at the start of a line of the processor's cache:
    registers that lie across two lines take twice as long to be read and written."""
    size, line = int(np.prod(shape)), 16
    flat = np.zeros(size + 2 * line, dtype=np.float32)
    start = -(flat.ctypes.data // 4 + ahead) % line
    return flat[start : start + size].reshape(shape)


def block_of(channels, machine) -> int:
    """How many channels of a result the innermost loop does at a time, as the registers allow; a divisor."""
    most = (machine.registers - 8) // VECTORS if machine.registers > 16 else 6
    return max(n for n in range(1, most + 1) if channels % n == 0)


# Convolution -------------------------------------------------------------------------------------------------------


def _transform(upsampled):
    """The transform of a tile, without the rows that give 0, and the points that these are for."""
    matrix = UPSAMPLED if upsampled else INPUT
    points = [point for point in range(POINTS) if matrix[point].any()]
    return matrix[points], points


def _order(sources):
    """Pairs of points, first those that every source has, and how many these are."""
    have = [_transform(upsampled)[1] for upsampled in sources]
    pairs = [(i, j) for i in range(POINTS) for j in range(POINTS)]
    common = [pair for pair in pairs if all(set(pair) <= set(points) for points in have)]
    return common + [pair for pair in pairs if pair not in common], len(common)


def _products(upsampled):
    return len(_transform(upsampled)[1]) ** 2


def _wide(upsampled, lanes):
    """Numbers of a row that a chunk's results need, and the rest of a register."""
    return (CHUNK // 2 if upsampled else CHUNK) + lanes


def scratch_size(sources, channels, lanes) -> int:
    """Numbers that a thread needs for itself. sources : (channels, upsampled) of each"""
    inputs = sum(_products(upsampled) * n * _wide(upsampled, lanes) for n, upsampled in sources)
    return inputs + POINTS**2 * channels * (CHUNK + lanes)


def winograd_weights(kernels, sources, block) -> np.ndarray:
    """The kernels (3, 3, 3, in, out) of all sources as `convolution` reads them.

    For each source (pairs of points, blocks of out, in, along z, out within a block); computed in float64.
    """
    order, _ = _order(sources)
    packed = []
    for kernel, upsampled in zip(kernels, sources, strict=True):
        points = set(_transform(upsampled)[1])
        pairs = [pair for pair in order if set(pair) <= points]
        ins, outs = kernel.shape[3:]
        along = ALONG[upsampled]
        wide = np.tensordot(KERNEL, kernel.astype(np.float64), axes=1)
        ordered = np.empty((len(pairs), outs // block, ins, len(along), block), dtype=np.float32)
        for target, (i, j) in zip(ordered, pairs, strict=True):
            taps = np.tensordot(along, np.tensordot(KERNEL[j], wide[i], axes=1), axes=1)  # (along z, in, out)
            target[...] = taps.reshape(len(along), ins, -1, block).transpose(2, 1, 0, 3)
        packed.append(ordered.ravel())
    return np.concatenate(packed)


def convolution(program, name, sources, block):
    """Write the convolution of kernel 3 with zero padding of one or more sources put together, then bias, ELU, and a
    factor and a summand per channel, for TILE planes of the result.

    sources : for each whether it is upsampled by 2 (nearest neighbour) before · block : see `block_of`
    Pointers: table of planes, of a source from the one before to the one after the results, an upsampled one's
    without repetition; table of planes of the result; `winograd_weights`; bias, factor, summand per channel; scratch.
    Integers: tiles along y, from and to; Y and Z of the result, its channels, its row; channels and row per source.
    """
    order, common = _order(sources)
    place = {pair: number for number, pair in enumerate(order)}
    with program.kernel(name, 5, 6 + 2 * len(sources)) as code:
        table, results, weights, per_channel, scratch, first, last, ys, zs, out, row_out, *rest = code.arguments
        channels, rows, lanes = rest[::2], rest[1::2], code.lanes
        wide, step = _wide(False, lanes), VECTORS * lanes
        # For each factor along z the registers that its products go into, and where what it is multiplied with begins.
        taps_of = {
            False: [[(v, z + v * lanes) for v in range(VECTORS)] for z in range(3)],
            True: [[(0, 0)], [(0, 1)], [(1, 1)], [(1, 2)]],
        }
        starts, weight_starts, planes, first_planes, number = [code.int(0)], [code.int(0)], [], [], 0
        for source, upsampled in enumerate(sources):
            products = _products(upsampled)
            starts.append(code.add(starts[-1], code.times(channels[source], products * _wide(upsampled, lanes))))
            factors = products * len(ALONG[upsampled])
            weight_starts.append(code.add(weight_starts[-1], code.times(channels[source], out, factors)))
            count = _transform(upsampled)[0].shape[1]
            planes.append([code.address(table, number + n) for n in range(count)])
            first_planes.append(number)
            number += count
        results = [code.address(results, n) for n in range(TILE)]
        sums = starts.pop()

        def transform(source, y, z, numbers):
            """Read a tile's 6 x 6 rows, write what its 36 products need."""
            upsampled = sources[source]
            (matrix, points), wide = _transform(upsampled), _wide(upsampled, lanes)
            row, across = rows[source], code.times(rows[source], channels[source])
            y, z, numbers = map(code.half, (y, z, numbers)) if upsampled else (y, z, numbers)
            stop = code.add(numbers, lanes)
            with code.loop(0, channels[source]) as channel, code.loop(0, stop, lanes) as along:
                start = code.add(code.times(y, across), code.times(channel.index, row), z, along.index)
                columns = []
                for j in range(matrix.shape[1]):
                    column = [code.load(plane, start, code.times(across, j)) for plane in planes[source]]
                    columns.append([code.combination(factors, column) for factors in matrix])
                start = code.add(starts[source], code.times(channel.index, wide), along.index)
                for i, first_point in enumerate(points):
                    line = [column[i] for column in columns]
                    for factors, second_point in zip(matrix, points, strict=True):
                        pair = place[first_point, second_point]
                        to = code.times(channels[source], pair * wide)
                        code.store(code.combination(factors, line), scratch, start, to)

        def ahead(source, pair, along, outs, following):
            """A line of cache that the following tile (y, z) reads: each pair of points stands for a plane and a row of
            it, and the parts that a pair is done in for the lines of that row."""
            count = len(planes[source])
            plane = code.least(code.b.sdiv(pair, code.int(count)), count - 1)
            line = code.b.srem(code.b.sdiv(outs, code.int(block)), code.int(VECTORS))
            y, z = following
            z = code.add(z, along, code.times(line, lanes))
            y, z = (code.half(y), code.half(z)) if sources[source] else (y, z)
            y = code.add(y, code.b.srem(pair, code.int(count)))
            start = code.add(code.times(y, rows[source], channels[source]), z)
            return code.address(table, code.add(first_planes[source], plane)), start

        def add_products(source, pair, along, outs, total, following):
            """Add what a source gives to `block` channels of the result, two registers of each."""
            upsampled, n = sources[source], channels[source]
            wide, taps = _wide(upsampled, lanes), taps_of[upsampled]
            values = code.add(starts[source], code.times(pair, n, wide), code.half(along) if upsampled else along)
            factors = code.add(weight_starts[source], code.times(n, code.add(code.times(pair, out), outs), len(taps)))
            there, row = ahead(source, pair, along, outs, following), rows[source]
            with code.loop(0, n, carry=total) as channel:
                code.prefetch(*there, code.times(channel.index, row))
                at, inputs = code.add(values, code.times(channel.index, wide)), {}
                for tap, reads in enumerate(taps):
                    here = code.add(factors, code.times(channel.index, len(taps) * block), tap * block)
                    inputs |= {start: code.load(scratch, at, start) for _, start in reads if start not in inputs}
                    for number in range(block):
                        factor = code.spread(weights, here, number)
                        for register, start in reads:
                            sum_ = number * VECTORS + register
                            channel.values[sum_] = code.fma(factor, inputs[start], channel.values[sum_])
            return channel.values

        def interleaved(total):
            """From registers of even and of odd results to such of neighbours."""
            lows, highs = ([lane // 2 + half + lane % 2 * lanes for lane in range(lanes)] for half in (0, lanes // 2))
            pairs = zip(total[::2], total[1::2], strict=True)
            return [code.pick(*pair, order) for pair in pairs for order in (lows, highs)]

        def multiply(start, stop, which, numbers, following):
            """For each pair of points the sum over channels and z, for all channels of the result. Meanwhile what the
            following tile reads is brought near."""
            with (
                code.loop(start, stop) as pair,
                code.loop(0, numbers, step) as along,
                code.loop(0, out, block) as outs,
            ):
                total = [code.constant(0)] * (block * VECTORS)
                for upsampled in (True, False):
                    these = [source for source in which if sources[source] == upsampled]
                    for source in these:
                        total = add_products(source, pair.index, along.index, outs.index, total, following)
                    total = interleaved(total) if upsampled and these else total
                at = code.add(sums, code.times(pair.index, out, wide), code.times(outs.index, wide), along.index)
                for n in range(block):
                    for v in range(VECTORS):
                        code.store(total[n * VECTORS + v], scratch, at, n * wide + v * lanes)

        def finish(y, z, numbers):
            """From the 36 sums of a tile to its 4 x 4 results."""
            with code.loop(0, out) as channel:
                bias, factor, summand = (
                    code.spread(per_channel, channel.index, code.times(out, kind)) for kind in range(3)
                )
                with code.loop(0, numbers, lanes) as along:
                    at = code.add(sums, code.times(channel.index, wide), along.index)
                    columns = []
                    for j in range(POINTS):
                        column = [code.load(scratch, at, code.times(out, place[i, j] * wide)) for i in range(POINTS)]
                        columns.append([code.combination(factors, column) for factors in RESULTS])
                    here = code.add(z, along.index)
                    for j, factors in enumerate(RESULTS):
                        within = code.less(code.add(y, j), ys)
                        at = code.add(
                            code.times(code.add(y, j + 1), out, row_out), code.times(channel.index, row_out), here, 1
                        )
                        for i, plane in enumerate(results):
                            vector = code.plus(code.combination(factors, [column[i] for column in columns]), bias)
                            vector = code.fma(code.elu(vector), factor, summand)
                            code.store(code.inside(vector, here, zs, within), plane, at)

        with code.loop(first, last) as tile, code.loop(0, zs, CHUNK) as chunk:
            y, z = code.times(tile.index, TILE), chunk.index
            left = code.b.sub(zs, z)
            registers = code.b.sdiv(code.add(left, step - 1), code.int(step))
            numbers = code.least(code.times(registers, step), CHUNK)
            for source in range(len(sources)):
                transform(source, y, z, numbers)
            more = code.less(CHUNK, left)
            following = (
                code.b.select(more, y, code.add(y, TILE)),
                code.b.select(more, code.add(z, CHUNK), code.int(0)),
            )
            multiply(0, common, range(len(sources)), numbers, following)
            if common < len(order):
                plain = [source for source, upsampled in enumerate(sources) if not upsampled]
                multiply(common, len(order), plain, numbers, following)
            finish(y, z, numbers)


# The other layers --------------------------------------------------------------------------------------------------


def pooling(program, name):
    """Write a factor and a summand per channel, then the maximum over 2 x 2 x 2, for one plane of the result.

    Pointers: table of the two planes; plane of the result; factor and summand per channel.
    Integers: rows of the result, from and to; Z of the result, channels, row, row of the result.
    """
    with program.kernel(name, 3, 6) as code:
        table, result, per_channel, first, last, zs, channels, row, row_out = code.arguments
        planes, lanes = [code.address(table, n) for n in range(2)], code.lanes
        even, odd = ([2 * lane + n for lane in range(lanes)] for n in range(2))
        with code.loop(first, last) as y, code.loop(0, channels) as channel:
            factor, summand = (code.spread(per_channel, channel.index, code.times(channels, n)) for n in range(2))
            with code.loop(0, zs, lanes) as z:
                pair = []
                for register in range(2):
                    most = None
                    for plane in planes:
                        for j in range(2):
                            above = code.add(code.times(y.index, 2), j + 1)
                            at = code.add(code.times(above, channels, row), code.times(channel.index, row))
                            vector = code.load(plane, at, code.times(z.index, 2), 1 + register * lanes)
                            vector = code.fma(vector, factor, summand)
                            most = vector if most is None else code.largest(most, vector)
                    pair.append(most)
                vector = code.largest(code.pick(*pair, even), code.pick(*pair, odd))
                at = code.add(code.times(code.add(y.index, 1), channels, row_out), code.times(channel.index, row_out))
                code.store(code.inside(vector, z.index, zs), result, at, z.index, 1)


def likelihood_weights(kernel, bias, block):
    """The kernel (in, labels) and bias of the last convolution, in blocks of labels: (blocks, in + 1, block)."""
    both = np.concatenate([kernel, bias[None]])
    both = np.pad(both, [(0, 0), (0, -both.shape[1] % block)])
    return np.ascontiguousarray(both.reshape(len(both), -1, block).transpose(1, 0, 2), dtype=np.float32)


def likelihood_block(labels, machine) -> int:
    """As `block_of`, where the last block need not be full."""
    most = block_of(5040, machine)
    return min(range(1, most + 1), key=lambda n: (-(-labels // n) * n + 4 * -(-labels // n), -n))


def likelihood(program, name, block):
    """Write the convolution of kernel 1 that gives a number per label, and the softmax over labels.

    Pointers: table of planes; table of planes of the result; `likelihood_weights`; scratch, for two registers per label
    of full blocks. Integers: planes; rows, from and to; Z, channels, row, labels, row and halo of the result.
    """
    with program.kernel(name, 4, 9) as code:
        table, results, weights, scratch, count, first, last, zs, channels, row, labels, row_out, halo = code.arguments
        lanes, step = code.lanes, VECTORS * code.lanes
        each = code.times(code.add(channels, 1), block)
        with code.loop(0, count) as number, code.loop(first, last) as y, code.loop(0, zs, step) as z:
            plane, result = code.address(table, number.index), code.address(results, number.index)
            with code.loop(0, labels, block) as outs:
                factors = code.times(code.b.sdiv(outs.index, code.int(block)), each)
                bias = code.add(factors, code.times(channels, block))
                total = [code.spread(weights, bias, n) for n in range(block) for _ in range(VECTORS)]
                with code.loop(0, channels, carry=total) as channel:
                    above = code.times(code.add(y.index, 1), channels, row)
                    at = code.add(above, code.times(channel.index, row), z.index, 1)
                    inputs = [code.load(plane, at, lanes * v) for v in range(VECTORS)]
                    at = code.add(factors, code.times(channel.index, block))
                    for n in range(block):
                        factor = code.spread(weights, at, n)
                        for v, vector in enumerate(inputs):
                            channel.values[n * VECTORS + v] = code.fma(factor, vector, channel.values[n * VECTORS + v])
                for n, vector in enumerate(channel.values):
                    code.store(vector, scratch, code.times(outs.index, step), n * lanes)
            for v in range(VECTORS):
                with code.loop(0, labels, carry=[code.constant(-np.inf)]) as label:
                    vector = code.load(scratch, code.times(label.index, step), v * lanes)
                    label.values[0] = code.largest(label.values[0], vector)
                most = label.values[0]
                with code.loop(0, labels, carry=[code.constant(0)]) as label:
                    at = code.add(code.times(label.index, step), v * lanes)
                    vector = code.exp(code.minus(code.load(scratch, at), most))
                    code.store(vector, scratch, at)
                    label.values[0] = code.plus(label.values[0], vector)
                share = code.quotient(code.constant(1), label.values[0])
                with code.loop(0, labels) as label:
                    at = code.add(code.times(label.index, step), v * lanes)
                    vector = code.product(code.load(scratch, at), share)
                    here = code.add(z.index, v * lanes)
                    vector = code.inside(vector, here, zs)
                    above = code.times(code.add(y.index, halo), labels, row_out)
                    code.store(vector, result, above, code.times(label.index, row_out), here, halo)


def smoothing(program, name, size):
    """Write the convolution of every channel with the same kernel of an odd size along each axis.

    Pointers: table of planes, as many before and after those of the result as the kernel reaches; the result; the
    kernel along an axis; scratch, a row. Integers: planes of the result; rows, from and to; Z, channels, row; numbers
    from one plane, one channel and one row of the result to the next. The halo of the planes is half the kernel's size.
    """
    with program.kernel(name, 4, 9) as code:
        table, result, kernel, scratch, count, first, last, zs, channels, row, *steps = code.arguments
        across = code.times(channels, row)
        along = [code.spread(kernel, n) for n in range(size)]
        tile = [[code.product(x, y) for y in along] for x in along]
        with code.loop(0, count) as number, code.loop(0, channels) as channel, code.loop(first, last) as y:
            planes = [code.address(table, code.add(number.index, n)) for n in range(size)]
            start = code.add(code.times(y.index, across), code.times(channel.index, row))
            indices = number.index, channel.index, y.index
            to = code.add(*(code.times(*pair) for pair in zip(indices, steps, strict=True)))
            with code.loop(0, code.add(zs, size - 1), code.lanes) as z:  # a row along x and y, then that along z
                total = code.constant(0)
                for plane, factors in zip(planes, tile, strict=True):
                    for j, factor in enumerate(factors):
                        at = code.add(start, code.times(across, j), z.index)
                        total = code.fma(factor, code.load(plane, at), total)
                code.store(total, scratch, z.index)
            with code.loop(0, zs, code.lanes) as z:
                total = code.constant(0)
                for k, factor in enumerate(along):
                    total = code.fma(factor, code.load(scratch, z.index, k), total)
                code.store(total, result, to, z.index)
