"""A model folder: ``card.yaml`` (a list of networks) and a label table per network (``labels.tsv``, a row per channel).

models/README.md describes both. A card is checked when it is read; behind `load` everything is typed. It may come from
anybody: names lead to no other folder, addresses are https and come with size and hash, numbers have bounds.
"""

import csv
import difflib
import errno
import os
import re
import reprlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from synthseg_native import yaml_text
from synthseg_native.errors import SynthSegError
from synthseg_native.networks import layers
from synthseg_native.networks.weights import WeightsFile

SHIPPED = Path(__file__).resolve().parents[3] / "models"
# The name stands in those of results, where BIDS takes letters and digits; weights and table lie in the folder.
NAME, FILE, SHA256, GIT_BLOB, ADDRESS, COLOR = (
    (r"[A-Za-z0-9]+", "letters and digits alone"),
    (r"[^./\\][^/\\]*", "the name of a file in its folder"),
    (r"[0-9a-f]{64}", "64 hexadecimal digits in lower case"),
    (r"[0-9a-f]{40}", "40 hexadecimal digits in lower case"),
    (r"https://[^/]\S*", "an https address"),
    (r"#[0-9A-Fa-f]{6}", "a colour such as #0099ff"),
)

# Label 24 is the fluid around the brain. Only with it is the sum over all structures the volume of the cavity.
CSF = 24


@dataclass(frozen=True)
class Labels:
    """The label table, one entry per channel of the network, background first.

    index : (N,) int32, label values · flip : (N,) int, the channel of the mirrored structure
    topology : (N,) int, channels of one class are kept connected, 0 for none
    names, freesurfer_names, hemispheres ("left", "right", "none"), colors ("#rrggbb") : lists of str
    """

    index: np.ndarray
    flip: np.ndarray
    topology: np.ndarray
    names: list
    freesurfer_names: list
    hemispheres: list
    colors: list

    def __len__(self):
        return len(self.index)

    @property
    def has_total_intracranial(self) -> bool:
        """Whether the volumes open with "total intracranial", as SynthSeg 2.0's do."""
        return CSF in self.index


@dataclass(frozen=True)
class Grid:
    """The voxels that a network takes. resolution_mm : isotropic · pad_multiple, min_size : in voxels, per axis"""

    resolution_mm: float
    pad_multiple: int
    min_size: int


@dataclass(frozen=True)
class Outputs:
    """What a network gives, and what is done with it.

    channels : as many as the table of labels has rows · table : its file, beside the card · end : of `layers.ENDS`
    smoothing_sigma : of the posteriors, in voxels, 0 for none · threshold : of a posterior that counts for a component
    """

    channels: int
    table: str
    end: str
    smoothing_sigma: float
    threshold: float


@dataclass(frozen=True)
class Network:
    """One network of a card.

    layers : levels, features, convolutions_per_level, kernel, activation, as `layers.layer_table` takes them
    inputs : names of what it reads, in this order; today the image alone
    """

    name: str
    weights: WeightsFile
    layers: dict
    grid: Grid
    inputs: tuple[str, ...]
    outputs: Outputs

    def shape(self) -> dict:
        """What `layers.layer_table` takes."""
        return {**self.layers, "labels": self.outputs.channels, "end": self.outputs.end, "inputs": self.inputs}

    def table(self) -> list[layers.Layer]:
        """Its layers."""
        return layers.layer_table(**self.shape())

    def computed_from(self) -> dict:
        """What of the card decides about its numbers, as JSON can hold it: all but the weights, whose bytes do."""
        found = {field: getattr(self, field) for field in ("name", "layers", "inputs")}
        return {**found, "inputs": list(self.inputs), "grid": asdict(self.grid), "outputs": asdict(self.outputs)}


@dataclass(frozen=True)
class Model:
    """What a card says.

    card : as it was read, for those who write cards · labels : the label table of the segmentation
    memory_mb : what one run may take
    """

    name: str
    folder: Path
    card: dict
    networks: tuple[Network, ...]
    labels: Labels
    research_grade: bool
    memory_mb: int

    @property
    def network(self) -> Network:
        """The network that segments; today the only one."""
        return self.networks[0]

    @property
    def weights(self) -> WeightsFile:
        """Of the network that segments."""
        return self.network.weights

    @property
    def labels_file(self) -> Path:
        """The table that `labels` was read from."""
        return self.folder / self.network.outputs.table

    @property
    def resolution(self) -> float:
        """Of the network's grid, mm."""
        return self.network.grid.resolution_mm

    def computed_from(self) -> dict:
        """What of the card decides about results, as JSON can hold it: not its title, accuracy, addresses, memory, nor
        the weights and the label table, whose bytes do (`WeightsFile.sha256`, ``labels.tsv``)."""
        return {"networks": [network.computed_from() for network in self.networks]}


def find_folder(name_or_folder: str | Path) -> Path:
    """The folder of a model: of a path that folder; of a name that of the model that is shipped so, else the one below
    $SYNTHSEG_NATIVE_MODELS or ./models. Nothing that lies where one stands is taken for a shipped model."""
    named, is_name = Path(name_or_folder), "/" not in str(name_or_folder)
    places = [SHIPPED / named] if is_name else []
    if "SYNTHSEG_NATIVE_MODELS" in os.environ:
        places.append(Path(os.environ["SYNTHSEG_NATIVE_MODELS"], named))
    places += [named, Path("models", named)]
    for folder in places:
        if (folder / "card.yaml").is_file():
            return folder
    raise SynthSegError(
        "usage", f"{name_or_folder}: no such model: give a folder with card.yaml and labels.tsv, or one of its names"
    )


def load(name_or_folder: str | Path) -> Model:
    """Read and check a model folder. Raises SynthSegError("usage") with the file and the field that is wrong."""
    folder = find_folder(name_or_folder)
    path = folder / "card.yaml"
    try:
        content = yaml_text.read(path)
    except (OSError, ValueError) as error:
        raise _unusable(path, " ".join(f"{error}".split())[:200]) from error
    model = _model(folder, path, content)
    if model.research_grade and not is_shipped(folder):
        # A copy is the same; anything else would pass for it in the names of results.
        shipped = SHIPPED / model.name
        if shipped.is_dir() and not _same(model, load(shipped)):
            raise _unusable(path, f"{model.name} is the name of another network", "choose a name of its own")
    return model


def _same(model, other):
    return (model.weights.sha256, model.computed_from()) == (other.weights.sha256, other.computed_from())


def is_shipped(folder: Path) -> bool:
    """Whether it is a model's folder of this project."""
    return folder.resolve().parent == SHIPPED


def _model(folder, path, content):
    card = _Fields(path, "", content)
    if "networks" not in card.content and "network" in card.content:
        raise _unusable(path, "it has the old form (network, input, posterior)", "see models/README.md for networks")
    entries = card.take("networks", list)
    networks = tuple(_network(path, f"networks[{n}].", entry) for n, entry in enumerate(entries))
    if len(networks) != 1:
        raise _unusable(path, f"{len(networks)} networks", "list one: this version runs no others")
    model = Model(
        name=card.take("name", str, form=NAME),
        folder=folder,
        card=content,
        networks=networks,
        labels=read_labels(folder / networks[0].outputs.table),
        research_grade=card.take("research_grade", bool, False),
        memory_mb=card.take("memory_mb", int, least=1),
    )
    outputs, rows = model.network.outputs, len(model.labels)
    if outputs.channels != rows:
        raise _unusable(path, f"{outputs.channels} channels, but {rows} rows in {outputs.table}", "make them agree")
    return model


def _network(path, place, content) -> Network:
    entry = _Fields(path, place, content)
    shape, grid, outputs = (
        _Fields(path, f"{place}{name}.", entry.take(name, dict)) for name in ("layers", "grid", "outputs")
    )
    network = Network(
        name=entry.take("name", str),
        weights=_weights(path, place, entry.take("weights", dict)),
        layers={
            "levels": shape.take("levels", int, least=1, most=12),
            "features": shape.take("features", int, least=1, most=4096),
            "convolutions_per_level": shape.take("convolutions_per_level", int, least=1, most=64),
            "kernel": shape.take("kernel", int, least=1, most=31),
            "activation": shape.take("activation", str, among=layers.ACTIVATIONS),
        },
        grid=Grid(
            grid.take("resolution_mm", float, above=0, most=100),
            grid.take("pad_multiple", int, least=1, most=4096),
            grid.take("min_size", int, least=1, most=4096),
        ),
        inputs=tuple(entry.take("inputs", list)),
        outputs=Outputs(
            channels=outputs.take("channels", int, least=2, most=4096),
            table=outputs.take("table", str, form=FILE),
            end=outputs.take("end", str, among=layers.ENDS),
            smoothing_sigma=outputs.take("smoothing_sigma", float, least=0, most=100),
            threshold=outputs.take("threshold", float, least=0, most=1),
        ),
    )
    for fields in (entry, shape, grid, outputs):
        fields.no_others()
    if network.inputs != ("image",):
        given = reprlib.repr(list(network.inputs))
        raise _unusable(path, f"{place}inputs {given}", "give [image]: this version has no other input")
    if network.outputs.end != "softmax":
        raise _unusable(path, f"{place}outputs.end {network.outputs.end}", "give softmax: labels are of posteriors")
    if network.layers["kernel"] % 2 == 0:
        raise _unusable(path, f"{place}layers.kernel {network.layers['kernel']} is even")
    halvings, multiple = 2 ** (network.layers["levels"] - 1), network.grid.pad_multiple
    if multiple % halvings:
        raise _unusable(path, f"{place}grid.pad_multiple {multiple} is no multiple of {halvings}")
    return network


def _weights(path, place, content) -> WeightsFile:
    fields = _Fields(path, f"{place}weights.", content)
    found = WeightsFile(
        file=fields.take("file", str, form=FILE),
        size=fields.take("size", int, None, least=1),
        sha256=fields.take("sha256", str, None, form=SHA256),
        git_blob=fields.take("git_blob", str, None, form=GIT_BLOB),
        urls=tuple(fields.take("urls", list, (), form=ADDRESS)),
    )
    fields.no_others()
    if found.urls and (found.size is None or found.sha256 is None):
        raise _unusable(path, f"{place}weights has addresses, but not both size and sha256", "add what is missing")
    return found


def _unusable(path, what, remedy="correct it"):
    return SynthSegError("usage", f"{path}: not a usable model card, {what}: {remedy}")


class _Fields:
    """A mapping of a card, taken field by field; what is wrong with one is said with its place, "networks[0].grid."."""

    NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}  # noqa: RUF012

    def __init__(self, path, place, content):
        if not isinstance(content, dict):
            raise _unusable(path, f"{place.rstrip('.') or 'it'} is no mapping")
        self.path, self.place, self.content, self.known = path, place, content, []

    def take(self, name, kind, *default, least=None, above=None, most=None, among=None, form=None):
        """The field, of this kind; the default where it lacks. least, above, most : bounds · among : values it may have
        form : (a regular expression, what it says in words) for a text, or each of a list"""
        self.known.append(name)
        value = self.content.get(name)
        if value is None:
            if not default:
                raise _unusable(self.path, f"lacks the field {self.place}{name}")
            return default[0]
        # Cut: what YAML repeats by reference may be endless when it is written out.
        shown = value if isinstance(value, bool | int | float | str) else reprlib.repr(value)
        where = f"{self.place}{name} {shown}"[:200]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(max(-(10**300), min(value, 10**300)))
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise _unusable(self.path, f"{where if kind is not dict else self.place + name} is not {self._name(kind)}")
        if kind is float and not np.isfinite(value):
            raise _unusable(self.path, f"{where} is no finite number")
        if (least is not None and value < least) or (above is not None and value <= above):
            raise _unusable(self.path, f"{where} is not {f'{least} or more' if above is None else f'above {above}'}")
        if most is not None and value > most:
            raise _unusable(self.path, f"{where} is above {most}")
        if form and not all(isinstance(one, str) and re.fullmatch(form[0], one) and one.isprintable()
                            for one in (value if kind is list else [value])):  # fmt: skip
            raise _unusable(self.path, f"{ascii(where)[1:-1]} is not {form[1]}")
        if among is not None and value not in among:
            raise _unusable(self.path, f"{where} is not known", f"use one of {', '.join(among)}")
        return value

    def _name(self, kind):
        return self.NAMES.get(kind, "a mapping")

    def no_others(self):
        """No field but those that were taken: a mistyped one would be passed over."""
        for name in self.content:
            if name not in self.known:
                near = difflib.get_close_matches(str(name), self.known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(self.known)}"
                raise _unusable(self.path, f"{self.place}{name} is not known", hint)


def read_labels(path: str | Path) -> Labels:
    """Read labels.tsv. Raises SynthSegError("usage") when it is missing, has other columns, or contradicts itself."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "No file")  # a pipe would be waited for
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        labels = Labels(
            index=np.array([int(row["index"]) for row in rows], dtype=np.int32),
            flip=np.array([int(row["flip_channel"]) for row in rows]),
            topology=np.array([int(row["topology_class"]) for row in rows]),
            names=[row["name"] for row in rows],
            freesurfer_names=[row["freesurfer_name"] for row in rows],
            hemispheres=[row["hemisphere"] for row in rows],
            colors=[row["color"] for row in rows],
        )
        channels = [int(row["channel"]) for row in rows]
    except OSError as error:
        raise SynthSegError("usage", f"{path}: {error.strerror}: a model folder needs its label table") from error
    except (KeyError, TypeError, ValueError, OverflowError, csv.Error) as error:
        raise SynthSegError("usage", f"{path}: not a usable label table, {error}: correct it") from error
    n = len(labels)
    if channels != list(range(n)) or n < 2 or labels.index[0] != 0:
        raise SynthSegError("usage", f"{path}: channels must count from 0, background first: correct the rows")
    if not all(re.fullmatch(COLOR[0], color) for color in labels.colors):
        raise SynthSegError("usage", f"{path}: color: each must be {COLOR[1]}: correct the rows")
    if not all(text.isprintable() for text in (*labels.names, *labels.freesurfer_names, *labels.hemispheres)):
        raise SynthSegError("usage", f"{path}: a name holds what cannot be printed: correct the rows")
    if len(set(labels.index.tolist())) != n:
        raise SynthSegError("usage", f"{path}: a label value occurs twice: correct column index")
    if not np.array_equal(np.sort(labels.flip), np.arange(n)) or np.any(labels.flip[labels.flip] != np.arange(n)):
        raise SynthSegError("usage", f"{path}: flipping twice must give each channel back: correct flip_channel")
    return labels
