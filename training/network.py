"""The engine's layer table as a trainable PyTorch module, and its weights in upstream's HDF5 layout."""

import pickle
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from synthseg_native.errors import SynthSegError
from synthseg_native.networks.layers import NORMALISATION_EPSILON, layer_table, read_weights

MOMENTUM = 0.99  # Keras' default


class Norm(nn.Module):
    """Keras' batch normalisation: biased variance, moving moments.

    With `free` it uses the moments of the batch and follows them; otherwise the stored ones, in training too. A batch
    of one image has moments of its own for every contrast, which inference does not have, so most of a training runs
    with them frozen: the network then learns with the formula that is shipped.
    """

    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.register_buffer("moving_mean", torch.zeros(channels))
        self.register_buffer("moving_variance", torch.ones(channels))
        self.free = False

    def forward(self, x):
        mean, variance = self.moving_mean, self.moving_variance
        if self.free:
            mean = x.float().mean(dim=(0, 2, 3, 4))
            variance = x.float().var(dim=(0, 2, 3, 4), unbiased=False)
            with torch.no_grad():
                self.moving_mean.lerp_(mean, 1 - MOMENTUM)
                self.moving_variance.lerp_(variance, 1 - MOMENTUM)
        scale = self.gamma * torch.rsqrt(variance + NORMALISATION_EPSILON)
        shift = self.beta - mean * scale
        shift, scale = (values.to(x.dtype).view(1, -1, 1, 1, 1) for values in (shift, scale))
        return torch.addcmul(shift, x, scale)


class _Double(torch.autograd.Function):
    """Nearest upsampling by 2; its gradient is a sum over 2x2x2, which PyTorch's own takes long for."""

    @staticmethod
    def forward(ctx, x):
        return functional.interpolate(x, scale_factor=2, mode="nearest")

    @staticmethod
    def backward(ctx, gradient):
        for axis in (2, 3, 4):
            even, odd = (gradient[(slice(None),) * axis + (slice(k, None, 2),)] for k in (0, 1))
            gradient = even + odd
        return gradient


class Network(nn.Module):
    """The layer table up to the logits. Input (B, 1, X, Y, Z) in [0, 1], output (B, labels, X, Y, Z)."""

    def __init__(self, *, levels, features, labels, **more):
        super().__init__()
        self.table = layer_table(levels=levels, features=features, labels=labels, **more)
        self.layers = nn.ModuleDict()
        for layer in self.table:
            if layer.kind == "conv":
                size, _, _, into, out = layer.weights["kernel"]
                convolution = nn.Conv3d(into, out, size, padding=size // 2)
                nn.init.kaiming_normal_(convolution.weight)
                nn.init.zeros_(convolution.bias)
                self.layers[layer.name] = convolution
            elif layer.kind == "norm":
                self.layers[layer.name] = Norm(layer.channels)

    def free_moments(self, free):
        for layer in self.layers.values():
            if isinstance(layer, Norm):
                layer.free = free

    def forward(self, x):
        done = {self.table[0].name: x}
        for layer in self.table[1:]:
            inputs = [done[name] for name in layer.inputs]
            if layer.kind == "softmax":
                return inputs[0]
            if layer.kind in ("conv", "norm"):
                out = self.layers[layer.name](inputs[0])
                if layer.activation != "none":
                    out = {"elu": functional.elu, "relu": functional.relu}[layer.activation](out, inplace=True)
            elif layer.kind == "pool":
                out = functional.max_pool3d(inputs[0], 2)
            elif layer.kind == "up":
                out = _Double.apply(inputs[0])
            else:
                out = torch.cat(inputs, dim=1)
            done[layer.name] = out
        return out

    def weights(self) -> dict:
        """{layer name: {Keras' weight name: float32 array in Keras' layout}}, as network.read_weights gives them."""
        found = {}
        for name, layer in self.layers.items():
            if isinstance(layer, Norm):
                items = {key: getattr(layer, key) for key in ("gamma", "beta", "moving_mean", "moving_variance")}
            else:
                items = {"kernel": layer.weight.permute(2, 3, 4, 1, 0), "bias": layer.bias}
            found[name] = {
                key: np.ascontiguousarray(item.detach().float().cpu().numpy()) for key, item in items.items()
            }
        return found

    @torch.no_grad()
    def set_weights(self, weights):
        """The inverse of `weights`."""
        for name, items in weights.items():
            layer = self.layers[name]
            for key, value in items.items():
                value = torch.from_numpy(value)
                if key == "kernel":
                    layer.weight.copy_(value.permute(4, 3, 0, 1, 2))
                else:
                    getattr(layer, key).copy_(value)

    def read(self, path):
        """Take the weights of an HDF5 file of this architecture. Raises SynthSegError("usage")."""
        self.set_weights(read_weights(path, self.table))


def read_checkpoint(path, device="cpu") -> dict:
    """What `Trainer.save` wrote. Raises SynthSegError("usage") where that is not a checkpoint."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        return {key: state[key] for key in ("iteration", "seconds", "free", "network", "average", "optimizer")}
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SynthSegError("usage", f"{path}: no readable checkpoint, {reason}: train first, or remove it") from error


def take(network, state, path):
    """Load the state of a checkpoint into a network. Raises SynthSegError("usage") where it is of another one."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise SynthSegError(
            "usage", f"{path}: of another network than the configuration's: name another output"
        ) from error


def write_weights(path, weights):
    """Write {layer: {name: array}} as Keras does, whole or not at all: group per layer, datasets `layer/name:0`."""
    path = Path(path)
    partial = path.with_suffix(".part")
    with h5py.File(partial, "w", track_order=False) as file:
        file.attrs["layer_names"] = [name.encode() for name in weights]
        for layer, items in weights.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [f"{layer}/{name}:0".encode() for name in items]
            for name, value in items.items():
                group.create_dataset(f"{layer}/{name}:0", data=value.astype(np.float32))
    partial.replace(path)
