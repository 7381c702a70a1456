"""From a table of layers to the steps that kernels compute.

A step is a convolution or a pooling with the layers that belong to it: what a convolution reads is put together and
upsampled while it is read (no concatenated tensor, no upsampled one); what is added to it, its activation and the
normalisation behind it are done while its results are at hand. A normalisation that a pooling alone reads is done by
that.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from synthseg_native.networks.layers import Layer, given


class Unlike(Exception):
    """A table is not of the form that steps have; the words say where."""


@dataclass
class Step:
    """One step; what it gives is called by the name of its layer, or of that which adds another tensor to it.

    layer : the convolution or the pooling · sources : (name of a step, or of the input; whether it is upsampled) of
    each tensor that it reads, put together in this order · norm : the normalisation that belongs to it, or None
    activation : of its results · added : name of the tensor that is added to them before, or None
    level : how often its result is halved · whole : whether its result is kept whole, as several steps read it at
    different times, or as it is small
    """

    layer: Layer
    sources: tuple[tuple[str, bool], ...]
    level: int
    norm: Layer | None = None
    activation: str = "none"
    added: str | None = None
    whole: bool = False

    @property
    def reads(self) -> list[str]:
        """Names of all tensors that it reads."""
        return [name for name, _ in self.sources] + [self.added] * (self.added is not None)


@dataclass(frozen=True)
class Steps:
    """A network in steps.

    inputs : the layers of what is read, in the order in which that is put together, as the tensor `source`
    steps : by name, in the order of the table · last : the convolution of kernel 1 that gives a number per label, which
    reads the tensor `read` · softmax : whether a softmax follows
    Where last is None the result is the mean over space of the tensor `read`.
    """

    inputs: tuple[Layer, ...]
    source: str
    steps: dict[str, Step]
    last: Layer | None
    read: str
    softmax: bool


def steps_of(table: Sequence[Layer]) -> Steps:
    """The steps of a table. Raises Unlike for one that they cannot be made of.

    >>> from synthseg_native.networks.layers import layer_table
    >>> found = steps_of(layer_table(levels=2, features=4, labels=3, convolutions_per_level=1))
    >>> for name, step in found.steps.items():
    ...     print(name, step.sources, step.norm and step.norm.name, step.level, step.whole)
    unet_conv_downarm_0_0 (('image', False),) None 0 False
    unet_maxpool_0 (('unet_conv_downarm_0_0', False),) unet_bn_down_0 1 True
    unet_conv_downarm_1_0 (('unet_maxpool_0', False),) unet_bn_down_1 1 True
    unet_conv_uparm_2_0 (('unet_conv_downarm_0_0', False), ('unet_conv_downarm_1_0', True)) unet_bn_up_0 0 False
    """
    return _Reader(table).read()


class _Reader:
    """Goes through a table from its first layer to its last."""

    def __init__(self, table):
        self.end = table[-1].kind if table[-1].kind in ("softmax", "mean") else None
        self.layers, self.readers = table[:-1] if self.end else table, defaultdict(list)
        for layer in table:
            for name in layer.inputs:
                self.readers[name].append(layer)
        self.table, self.inputs = table, tuple(given(table))
        self.parts: dict[str, tuple] = {}  # of a layer: the tensors that it stands for, and whether upsampled
        self.waiting: dict[str, Layer] = {}  # normalisations that a pooling has to do
        self.levels: dict[str, int] = {}
        self.steps: dict[str, Step] = {}
        self.source = None

    def read(self) -> Steps:
        *layers, last = self.layers
        if self.end == "mean":
            layers, last = self.layers, None
        for layer in layers:
            getattr(self, f"_{layer.kind}")(layer)
        read = self._tensor(last or self.table[-1])
        if last:
            alone = len(self.readers[last.name]) == (self.end == "softmax")
            if last.kind != "conv" or last.activation != "none" or last.weights["kernel"][0] != 1 or not alone:
                raise Unlike(f"last convolution {last.name} (it has one of kernel 1 without an activation, at the end)")
            if self.levels[read] or read == self.source:
                raise Unlike(f"what {last.name} reads (it has features of the input's size there)")
        self._keep(read)
        return Steps(self.inputs, self.source, self.steps, last, read, self.end == "softmax")

    def _keep(self, read):
        """Say which results are kept whole. At the finest level none is: the steps up to one that two read are done
        twice, which takes about as long as getting the memory from the system, and takes a quarter less of it. What
        that level reads upsampled is whole, so that nothing else is left of the others while it is gone through."""
        times = Counter(name for step in self.steps.values() for name in step.reads)
        times[read] += 1
        deepest = max(self.levels.values())
        finest = [step for step in self.steps.values() if step.level == 0]
        last = {name for step in finest for name, upsampled in step.sources if upsampled}
        for name, step in self.steps.items():
            step.whole = step.level > 0 and (step.level == deepest or times[name] > 1 or name in last)
        if self.end == "mean" and read in self.steps:
            self.steps[read].whole = True

    def _input(self, layer):
        if len(self.inputs) == 1:
            self._begin(layer)

    _onehot = _input

    def _begin(self, layer):
        self.source, self.levels[layer.name] = layer.name, 0
        self.parts[layer.name] = ((layer.name, False),)

    def _concat(self, layer):
        if len(self.inputs) > 1 and layer.inputs == tuple(read.name for read in self.inputs):
            self._begin(layer)
        else:
            self.parts[layer.name] = tuple(part for name in layer.inputs for part in self._read(layer, name))

    def _up(self, layer):
        self.parts[layer.name] = ((self._tensor(layer), True),)

    def _conv(self, layer):
        (name,) = layer.inputs
        sources = self._read(layer, name)
        levels = {self.levels[tensor] - upsampled for tensor, upsampled in sources}
        if len(levels) > 1 or min(levels) < 0:
            raise Unlike(f"sizes of what {layer.name} reads")
        self._put(layer, sources, levels.pop(), activation=layer.activation)

    def _pool(self, layer):
        (name,) = layer.inputs
        norm = self.waiting.get(name)
        tensor = self._tensor(norm or layer)
        self._put(layer, ((tensor, False),), self.levels[tensor] + 1, norm=norm)

    def _add(self, layer):
        """Done by one of the two convolutions whose results it adds, which nobody else reads."""
        for name, other in (layer.inputs, layer.inputs[::-1]):
            step, (tensor, *more) = self.steps.get(name), self._read(layer, other)
            alike = not more and not tensor[1] and tensor[0] != name
            if step and step.layer.kind == "conv" and alike and self._bare(step) and self.readers[name] == [layer]:
                if self.levels[tensor[0]] != step.level or self._channels(tensor[0]) != layer.channels:
                    raise Unlike(f"sizes of what {layer.name} reads")
                del self.steps[name]
                self._put(layer, step.sources, step.level, activation=layer.activation, added=tensor[0])
                self.steps[layer.name].layer = step.layer
                return
        raise Unlike(f"what {layer.name} reads (it has a convolution there, without an activation)")

    @staticmethod
    def _bare(step):
        return step.activation == "none" and not step.norm and not step.added

    def _channels(self, tensor):
        return next(layer.channels for layer in self.table if layer.name == tensor)

    def _norm(self, layer):
        tensor = self._tensor(layer)
        step, readers = self.steps.get(tensor), self.readers
        if step is None or step.layer.kind != "conv" or step.norm or layer.inputs[0] != tensor:
            raise Unlike(f"normalisation {layer.name} (it has one behind a convolution)")
        if readers[tensor] == [layer]:
            step.norm, self.parts[layer.name] = layer, ((tensor, False),)
        elif any(reader.kind != "pool" for reader in readers[layer.name]):
            raise Unlike(f"normalisation {layer.name} (where others read {tensor} too, it has a pooling behind it)")
        else:
            self.waiting[layer.name] = layer

    def _put(self, layer, sources, level, **more):
        self.steps[layer.name] = Step(layer, sources, level, **more)
        self.levels[layer.name], self.parts[layer.name] = level, ((layer.name, False),)

    def _read(self, layer, name):
        """The tensors that a layer reads where it reads the layer `name`."""
        if name not in self.parts:
            raise Unlike(f"{name}, which {layer.name} reads")
        return self.parts[name]

    def _tensor(self, layer):
        """The one tensor that a layer reads as it is."""
        (name,) = layer.inputs
        parts = self._read(layer, name)
        if len(parts) > 1 or parts[0][1]:
            raise Unlike(f"{name}, which {layer.name} reads (it reads that in a convolution alone)")
        return parts[0][0]
