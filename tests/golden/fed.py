"""The command, each network of which may read upstream's map in place of what the network before it has found here:

    --fed FILE [--wrong]    before the command's own words, of the case t1_robust_parc_qc alone

No error then hides behind the one before, and what one voxel moves further on looks like none. FILE is written: how far
the maps that the next network would have read are from upstream's, {map: {"different": voxels, "margin": of groups, the
largest where the likeliest one is another}}. With --wrong each network makes a mistake of its own. Without either it is
the command.
"""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np

from synthseg_native import cli, engines, reference
from synthseg_native.networks import cards

V2 = Path(__file__).parent / "v2"
MODEL = V2.parents[2] / "models" / "golden2"
GIVES = {("image",): "groups", ("groups",): "denoised"}  # what a network reads -> the map that is made of what it gives


def upstreams(model: cards.Model) -> dict[str, np.ndarray]:
    """Upstream's maps, by the names by which networks read them."""
    groups = np.load(V2 / "t1_robust_groups.npz")
    likeliest = np.load(V2 / "t1_robust_labels.npz")["likeliest"]
    box = reference.quality_box(likeliest, model.networks["quality"].grid.box)
    return {
        "groups": groups["s1"],
        "denoised": groups["denoised"],
        "cortex": np.isin(model.labels.index, cards.CORTEX)[likeliest].astype(np.uint8),
        "quality_groups": model.labels.quality_groups.astype(np.uint8)[box],
    }


class Fed:
    """An engine that reads upstream's maps."""

    def __init__(self, engine, maps, found, mistakes):
        self._engine, self._maps, self._found, self._mistakes = engine, maps, found, mistakes

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def run(self, inputs, smoothing=0.0):
        """See `engines`."""
        reads = tuple(sorted(inputs))
        upstreams = {name: self._maps[name] for name in reads if name in self._maps}
        for name, right in upstreams.items():
            self._found.setdefault(name, {})["different"] = int(np.count_nonzero(inputs[name] != right))
        as_it_is = lambda run, inputs: run(inputs)  # noqa: E731
        run = lambda inputs: self._engine.run(inputs, smoothing)  # noqa: E731
        for start, slab in self._mistakes.get(reads, as_it_is)(run, inputs | upstreams):
            if gives := GIVES.get(reads):
                best = np.sort(slab[slab.argmax(axis=-1) != self._maps[gives][start : start + len(slab)]])
                about = self._found.setdefault(gives, {"margin": 0.0})
                about["margin"] = float((best[:, -1] - best[:, -2]).max(initial=about["margin"]))
            yield start, slab


def averaged_with_the_mirror_image(flip):
    """As the default mode does with structures, and never with parcels."""

    def slabs(run, inputs):
        straight = np.concatenate([slab.copy() for _, slab in run(inputs)])
        mirrored = {name: volume[::-1] for name, volume in inputs.items()}
        straight += np.concatenate([slab.copy() for _, slab in run(mirrored)])[::-1][..., flip]
        yield 0, straight / 2

    return slabs


def mistakes(maps: dict[str, np.ndarray], model: cards.Model) -> dict:
    """One for each network, by what that reads."""

    def reads(**changed):
        return lambda run, inputs: run(inputs | {name: change(inputs[name]) for name, change in changed.items()})

    return {
        ("image",): reads(image=lambda image: image[::-1]),
        ("groups",): reads(groups=lambda groups: (groups + 1) % 5),
        ("denoised", "image"): reads(denoised=lambda _: maps["groups"]),
        ("cortex", "image"): averaged_with_the_mirror_image(model.parcels.flip),
        ("quality_groups",): reads(quality_groups=lambda box: np.roll(box, 1, axis=2)),
    }


def main() -> int:
    """The command's status."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--fed", type=Path)
    parser.add_argument("--wrong", action="store_true")
    ours, words = parser.parse_known_args()
    if not ours.fed:
        return cli.main(words)
    model, found, load = cards.load(str(MODEL)), {}, engines.load
    maps = upstreams(model)
    wrong = mistakes(maps, model) if ours.wrong else {}

    def loaded(*names):
        module = load(*names)
        build = lambda *table, **more: Fed(module.build(*table, **more), maps, found, wrong)  # noqa: E731
        return SimpleNamespace(CAN=module.CAN, check=module.check, build=build)

    with mock.patch.object(engines, "load", loaded):
        status = cli.main(words)
    ours.fed.write_text(json.dumps(found))
    return status
