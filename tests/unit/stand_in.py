"""A stand-in for the network, and a small head for it."""

import numpy as np

from synthseg_native.engines.capabilities import Capabilities

# A head of 40 mm: brighter means a higher channel, so that the stand-in is the same for every orientation.
SHAPE = (40, 44, 48)


def head():
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    return np.clip(200 * (1 - np.sqrt(x**2 + y**2 + z**2)) + 20 * x, 0, None).astype(np.float32)


def affine():
    matrix = np.diag([1.0, 1, 1, 1])
    matrix[:3, 3] = -20, -22, -24
    return matrix


class Brightness:
    """An engine that segments by intensity, of smooth posteriors; counts its passes, notes the shapes it sees."""

    name, version, device, device_reason = "stand-in", "1", "cpu", "asked for"
    can = Capabilities()
    labels = 32

    passes, shapes = 0, ()

    def release(self):
        pass

    def run(self, inputs, smoothing=0.0):
        volume = inputs["image"]
        type(self).passes += 1
        type(self).shapes = (*self.shapes, volume.shape)
        centres = np.linspace(0, 1, self.labels, dtype=np.float32)
        score = np.exp(-((volume[..., None] - centres) ** 2) * 4000)
        yield 0, score / score.sum(axis=-1, keepdims=True)


class Whole(Brightness):
    """The same for each network of SynthSeg 2.0, by its table: of as many channels, from what that network reads."""

    built, best = (), 1.2  # best : of the scores, not clipped

    def __init__(self, table):
        self.labels, self.end = table[-1].channels, table[-1].kind
        type(self).built = (*self.built, table[-1].name.rpartition("_")[0])

    def run(self, inputs, smoothing=0.0):
        if self.end == "mean":
            type(self).passes += 1
            yield 0, np.linspace(0.1, self.best, self.labels, dtype=np.float32).reshape(1, 1, 1, -1)
        elif "image" in inputs:
            yield from super().run(inputs, smoothing)
        else:  # the likeliest channel is what it was
            type(self).passes += 1
            ((_, channels),) = inputs.items()
            yield 0, np.eye(self.labels, dtype=np.float32)[channels]
