"""The training loop: few samples per iteration, frozen moments, an average of the weights, checkpoints, a curve."""

import contextlib
import ctypes
import functools
import itertools
import math
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from synthseg_native.networks import cards

from . import maps
from .generate import generate
from .loss import dice, loss
from .network import Network, read_checkpoint, take


def device_of(name) -> torch.device:
    """The device of a configuration: auto takes CUDA, then MPS, then the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(name)


def keep_memory():
    """Tell glibc to keep what is freed: the same large arrays come back every iteration, and zeroing pages costs a
    third of it. Elsewhere nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


class Trainer:
    """A training as a configuration describes it; `run` carries on from the iteration reached."""

    def __init__(self, config, training_maps, held_out):
        self.config, self.settings = config, config["training"]
        self.device = device_of(config["device"])
        apple = self.device.type == "mps"  # samples are made on its CPU: not all that takes exists there
        self.workshop = torch.device("cpu") if apple else self.device
        self.layout = torch.contiguous_format if apple else torch.channels_last_3d
        if self.device.type == "cpu":
            torch.set_num_threads(config["threads"])
            keep_memory()
        self.maps, self.held_out = training_maps, held_out
        self.model = cards.load(config["model"])
        self.channels = maps.channel_of(self.model.labels.index)
        torch.manual_seed(config["seed"])
        self.network = self._new_network()
        self.average = {key: value.clone() for key, value in self.network.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=1.0, weight_decay=self.settings["weight_decay"], betas=(0.9, 0.99)
        )
        self.weight = self._channel_weights()
        self.iteration, self.seconds, self.free = 0, 0.0, self.settings["free_moments"]

    def _new_network(self):
        network = Network(**(self.model.network.shape() | self.config.get("network", {})))
        return network.to(self.device, memory_format=self.layout)

    def start_from(self, path):
        """Begin with the weights of an HDF5 file, its moments frozen."""
        self.network.read(path)
        self.average = {key: value.clone() for key, value in self.network.state_dict().items()}
        self.free = 0

    def _channel_weights(self):
        """1 / sqrt(share of voxels) per channel of the network (N,), mean 1."""
        count = np.zeros(len(self.model.labels))
        for label_map in self.maps:
            np.add.at(count, self.channels, np.bincount(label_map.classes.ravel(), minlength=len(self.channels)))
        weight = 1 / np.sqrt(np.maximum(count, 1))
        return torch.tensor(weight / weight.mean(), dtype=torch.float32, device=self.device)

    # One iteration ---------------------------------------------------------------------------------------------------

    def autocast(self):
        bf16 = self.config["precision"] == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()

    def learning_rate(self):
        s, i = self.settings, self.iteration
        decay = (1 + math.cos(math.pi * min(i / s["iterations"], 1))) / 2
        peak, final = s["learning_rate"], s["final_learning_rate"]
        return min(1, (i + 1) / s["warm_up"]) * (final + (peak - final) * decay)

    def samples(self, iteration) -> list:
        """The samples of an iteration, of one size: maps and all else follow from the seed and its number."""
        rng = np.random.default_rng([self.config["seed"], iteration])
        sizes, often = zip(*self.settings["sizes"], strict=True)
        size = sizes[rng.choice(len(sizes), p=np.array(often) / sum(often))]
        return [
            generate(
                self.maps[rng.integers(len(self.maps))],
                self.channels,
                size,
                [self.config["seed"], iteration, 1 + k],
                self.config["generation"],
                resolution=self.model.resolution,
                device=self.workshop,
            )
            for k in range(self.settings["batch"])
        ]

    def _on_device(self, samples):
        """Images (B, 1, X, Y, Z) and targets (B, X, Y, Z) of samples, where the network is."""
        images = torch.stack([sample.image for sample in samples])[:, None].to(self.device)
        targets = torch.stack([sample.target for sample in samples]).to(self.device)
        return images.contiguous(memory_format=self.layout), targets

    def step(self):
        """One iteration; returns the loss."""
        self.network.free_moments(self.iteration < self.free)
        image, target = self._on_device(self.samples(self.iteration))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.zero_grad()
        with self.autocast():
            logits = self.network(image)
        value = loss(logits, target, self.weight)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings["clip"])
        self.optimizer.step()
        self.iteration += 1
        # Early on the average follows closely, or it would keep the start for long.
        decay = min(self.settings["average"], (1 + self.iteration) / (10 + self.iteration))
        state = self.network.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [state[key] for key in self.average], 1 - decay)
        return float(value.detach())

    # Validation ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self) -> dict:
        """Mean Dice of the structures per case of the configuration's `validation`, of the averaged weights."""
        network = self._new_network()
        network.load_state_dict(self.average)
        scores = {}
        for case, samples in self.cases.items():
            values = []
            for sample in samples:
                image, target = self._on_device([sample])
                with self.autocast():
                    labels = network(image).argmax(dim=1)
                values.append(np.nanmean(dice(labels, target, len(self.model.labels))[1:]))
            scores[case] = float(np.mean(values))
        return scores

    @functools.cached_property
    def cases(self) -> dict:
        """The validation's samples per case, on the maps held out; they stay the same."""
        settings, cases = self.config["validation"], {}
        for case, changes in settings["cases"].items():
            cases[case] = []
            for label_map, seed in itertools.product(self.held_out, range(settings["seeds"])):
                sample = generate(
                    label_map,
                    self.channels,
                    settings["size"],
                    [label_map.number, seed],
                    merge(settings["generation"], changes),
                    resolution=self.model.resolution,
                    device=self.workshop,
                )
                cases[case].append(sample)
        return cases

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def save(self, path):
        """Write a checkpoint beside the old one, then put it in its place."""
        partial = Path(path).with_suffix(".part")
        state = {
            "iteration": self.iteration,
            "seconds": self.seconds,
            "free": self.free,
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, partial)
        partial.replace(path)

    def resume(self, path):
        """Carry on from a checkpoint. Raises SynthSegError("usage") where it is none, or of another network."""
        state = read_checkpoint(path, self.device)
        take(self.network, state["network"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        self.iteration, self.seconds, self.free = state["iteration"], state["seconds"], state["free"]

    # The loop --------------------------------------------------------------------------------------------------------

    def run(self, folder, iterations=None):
        """Train up to the configured number of iterations, or this many more; all it writes is in the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        s = self.settings
        last = s["iterations"] if iterations is None else min(s["iterations"], self.iteration + iterations)
        curve = Curve(folder / "curve.tsv", list(self.config["validation"]["cases"]))
        # A CPU may be shared, and this process halted: what counts is what it was given.
        clock = time.process_time if self.device.type == "cpu" else time.monotonic
        losses, stop = [], []
        for number in (signal.SIGINT, signal.SIGTERM):  # an iteration is finished and kept before it ends
            signal.signal(number, lambda number, _: stop.append(number))
        with tqdm(total=last, initial=self.iteration, file=sys.stderr, mininterval=5, unit="it") as bar:
            while self.iteration < last and not stop:
                start = clock()
                losses.append(self.step())
                self.seconds += clock() - start
                bar.update()
                if self.iteration % s["validate_every"] == 0 or self.iteration == last:
                    scores = self.validate()
                    curve.add(self.iteration, np.mean(losses), self.learning_rate(), self.seconds, scores)
                    bar.set_postfix_str(
                        " ".join([f"loss {np.mean(losses):.3f}", *(f"{k} {v:.3f}" for k, v in scores.items())])
                    )
                    losses.clear()
                if self.iteration % s["save_every"] == 0 or self.iteration == last or stop:
                    self.save(folder / "checkpoint.pt")
        if stop:
            raise KeyboardInterrupt


class Curve:
    """The curve as TSV: iteration, loss since the last row, learning rate, seconds, Dice per case.

    The seconds are of training alone, on a CPU of processor time.
    """

    def __init__(self, path, cases):
        self.path, self.cases = path, cases
        if not path.exists():
            path.write_text(
                "\t".join(["iteration", "loss", "learning_rate", "seconds", *cases]) + "\n", encoding="utf-8"
            )

    def add(self, iteration, value, rate, seconds, scores):
        cells = [
            str(iteration),
            f"{value:.4f}",
            f"{rate:.2e}",
            f"{seconds:.0f}",
            *(f"{scores[c]:.4f}" for c in self.cases),
        ]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\t".join(cells) + "\n")


def merge(base, changes):
    """Nested dictionaries, the second over the first."""
    return base | {
        key: merge(base[key], value)
        if isinstance(value, dict) and isinstance(base.get(key), dict) and key != "contrasts"
        else value
        for key, value in changes.items()
    }
