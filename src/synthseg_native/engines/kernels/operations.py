"""The other layers as kernels (`language`), on planes as in `layout`.

They are the pooling, the last convolution with its softmax, and the smoothing of what it gives.
"""

import numpy as np

from synthseg_native.engines.kernels.language import Machine, Program
from synthseg_native.engines.kernels.layout import VECTORS, block_of


def pooling(program: Program, name: str, halo: int) -> None:
    """Write a factor and a summand per channel, then the maximum over 2 x 2 x 2, for one plane of the result.

    halo : of all planes
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
                            above = code.add(code.times(y.index, 2), j + halo)
                            at = code.add(code.times(above, channels, row), code.times(channel.index, row))
                            vector = code.load(plane, at, code.times(z.index, 2), halo + register * lanes)
                            vector = code.fma(vector, factor, summand)
                            most = vector if most is None else code.largest_of_both(most, vector)
                    pair.append(most)
                vector = code.largest_of_both(code.pick(*pair, even), code.pick(*pair, odd))
                at = code.add(
                    code.times(code.add(y.index, halo), channels, row_out), code.times(channel.index, row_out)
                )
                code.store(code.inside(vector, z.index, zs), result, at, z.index, halo)


def likelihood_weights(kernel: np.ndarray, bias: np.ndarray, block: int) -> np.ndarray:
    """The kernel (in, labels) and bias of the last convolution, in blocks of labels: (blocks, in + 1, block)."""
    both = np.concatenate([kernel, bias[None]])
    both = np.pad(both, [(0, 0), (0, -both.shape[1] % block)])
    return np.ascontiguousarray(both.reshape(len(both), -1, block).transpose(1, 0, 2), dtype=np.float32)


def likelihood_block(labels: int, machine: Machine) -> int:
    """As `block_of`, where the last block need not be full."""
    most = block_of(5040, machine)
    return min(range(1, most + 1), key=lambda n: (-(-labels // n) * n + 4 * -(-labels // n), -n))


def likelihood(program: Program, name: str, block: int, softmax: bool, halo: int) -> None:
    """Write the convolution of kernel 1 that gives a number per label, and the softmax over labels, if it ends in one.

    block : see `likelihood_block` · halo : of the planes that it reads
    Pointers: table of planes; table of planes of the result; `likelihood_weights`; scratch, for two registers per label
    of full blocks. Integers: planes; rows, from and to; Z, channels, row, labels, row and halo of the result.
    """
    with program.kernel(name, 4, 9) as code:
        table, results, weights, scratch, count, first, last, zs, channels, row, labels, row_out, halo_out = (
            code.arguments
        )
        lanes, step = code.lanes, VECTORS * code.lanes
        each = code.times(code.add(channels, 1), block)
        with code.loop(0, count) as number, code.loop(first, last) as y, code.loop(0, zs, step) as z:
            plane, result = code.address(table, number.index), code.address(results, number.index)
            with code.loop(0, labels, block) as outs:
                factors = code.times(code.b.sdiv(outs.index, code.int(block)), each)
                bias = code.add(factors, code.times(channels, block))
                total = [code.spread(weights, bias, n) for n in range(block) for _ in range(VECTORS)]
                with code.loop(0, channels, carry=total) as channel:
                    above = code.times(code.add(y.index, halo), channels, row)
                    at = code.add(above, code.times(channel.index, row), z.index, halo)
                    inputs = [code.load(plane, at, lanes * v) for v in range(VECTORS)]
                    at = code.add(factors, code.times(channel.index, block))
                    for n in range(block):
                        factor = code.spread(weights, at, n)
                        for v, vector in enumerate(inputs):
                            channel.values[n * VECTORS + v] = code.fma(factor, vector, channel.values[n * VECTORS + v])
                for n, vector in enumerate(channel.values):
                    code.store(vector, scratch, code.times(outs.index, step), n * lanes)
            for v in range(VECTORS):
                share = _exponentials(code, scratch, labels, v) if softmax else None
                with code.loop(0, labels) as label:
                    vector = code.load(scratch, code.times(label.index, step), v * lanes)
                    vector = code.product(vector, share) if softmax else vector
                    here = code.add(z.index, v * lanes)
                    vector = code.inside(vector, here, zs)
                    above = code.times(code.add(y.index, halo_out), labels, row_out)
                    code.store(vector, result, above, code.times(label.index, row_out), here, halo_out)


def _exponentials(code, scratch, labels, v):
    """Make exponentials of the likelihoods in register v of each label; returns what makes posteriors of them."""
    step, place = VECTORS * code.lanes, v * code.lanes
    with code.loop(0, labels, carry=[code.constant(-np.inf)]) as label:
        vector = code.load(scratch, code.times(label.index, step), place)
        label.values[0] = code.largest(label.values[0], vector)
    most = label.values[0]
    with code.loop(0, labels, carry=[code.constant(0)]) as label:
        at = code.add(code.times(label.index, step), place)
        vector = code.exp(code.minus(code.load(scratch, at), most))
        code.store(vector, scratch, at)
        label.values[0] = code.plus(label.values[0], vector)
    return code.quotient(code.constant(1), label.values[0])


def smoothing(program: Program, name: str, size: int) -> None:
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
