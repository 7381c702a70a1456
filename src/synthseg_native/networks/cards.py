"""A model folder: ``card.yaml`` (a list of networks) and tables of their channels (``labels.tsv``).

A network's name says what it is for: ROLES. models/README.md describes card and tables. A card is checked when it is
read; behind `load` everything is typed. It may come from anybody: names lead to no other folder, addresses are https
and come with size and hash, numbers have bounds.
"""

import csv
import difflib
import errno
import os
import re
import reprlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from synthseg_native import yaml_text
from synthseg_native.errors import SynthSegError
from synthseg_native.networks import layers
from synthseg_native.networks.weights import WeightsFile

SHIPPED = Path(__file__).resolve().parents[3] / "models"
# The name stands in those of results, where BIDS takes letters and digits; weights and table lie in the folder.
NAME, PREFIX, FILE, SHA256, GIT_BLOB, ADDRESS, COLOR = (
    (r"[A-Za-z0-9]+", "letters and digits alone"),
    (r"[A-Za-z0-9_]+", "letters, digits and _ alone"),
    (r"[^./\\][^/\\]*", "the name of a file in its folder"),
    (r"[0-9a-f]{64}", "64 hexadecimal digits in lower case"),
    (r"[0-9a-f]{40}", "40 hexadecimal digits in lower case"),
    (r"https://[^/]\S*", "an https address"),
    (r"#[0-9A-Fa-f]{6}", "a colour such as #0099ff"),
)

# Label 24 is the fluid around the brain. Only with it is the sum over all structures the volume of the cavity.
CSF = 24
CORTEX = (3, 42)  # labels of the left and the right one
WHITE_MATTER = (2, 41)


# What networks are for, what each reads, and how it ends. What is read: the image; the likeliest channel of another
# network; "cortex", whether a voxel is outside or in the cortex; "quality_groups", what a label counts for in scores.
ROLES = {
    "segmentation": (("image",), "softmax"),
    "groups": (("image",), "softmax"),
    "denoised": (("groups",), "softmax"),
    "robust": (("image", "denoised"), "softmax"),
    "parcellation": (("image", "cortex"), "softmax"),
    "quality": (("quality_groups",), "mean"),
}
SEGMENTS = ("segmentation", "robust")  # those whose channels are the labels
ROBUST = ("groups", "denoised", "robust")  # what takes the segmentation's place, in this order
COMPANIONS = ("parcellation", "quality")  # what a card may take from another model


@dataclass(frozen=True)
class Labels:
    """The label table, one entry per channel of the network, background first.

    index : (N,) int32, label values · flip : (N,) int, the channel of the mirrored structure
    topology : (N,) int, channels of one class are kept connected, 0 for none
    quality_groups : (N,) int, the channel of the quality network that a label counts for, 0 for none
    names, freesurfer_names, hemispheres ("left", "right", "none"), colors ("#rrggbb") : lists of str
    """

    index: np.ndarray
    flip: np.ndarray
    topology: np.ndarray
    quality_groups: np.ndarray
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


def with_parcels(labels: Labels, parcels: Labels | None) -> Labels:
    """The table of a label map with parcels: structures, then parcels; by itself the table of the structures."""
    if parcels is None:
        return labels
    n, joined = len(labels), {}
    for name in ("index", "topology", "quality_groups"):
        joined[name] = np.concatenate([getattr(labels, name), getattr(parcels, name)[1:]])
    for name in ("names", "freesurfer_names", "hemispheres", "colors"):
        joined[name] = getattr(labels, name) + getattr(parcels, name)[1:]
    return Labels(flip=np.concatenate([labels.flip, parcels.flip[1:] - 1 + n]), **joined)


@dataclass(frozen=True)
class Grid:
    """The voxels that a network takes. resolution_mm : isotropic · pad_multiple, min_size : in voxels, per axis
    box : edge of the box that it takes whatever the size of the scan; None: it takes the padded scan"""

    resolution_mm: float
    pad_multiple: int
    min_size: int
    box: int | None = None


@dataclass(frozen=True)
class Outputs:
    """What a network gives, and what is done with it.

    channels : as many as the table has rows · table : its file, beside the card, or None · end : of `layers.ENDS`
    smoothing_sigma : of the posteriors, in voxels, 0 for none · threshold : of a posterior that counts for a component
    """

    channels: int
    table: str | None
    end: str
    smoothing_sigma: float
    threshold: float


@dataclass(frozen=True)
class Network:
    """One network of a card.

    name : of ROLES · folder : where weights and table are
    layers : levels, features, convolutions_per_level, kernel, activation, form, prefix, levels_without_skip, as
    `layers.layer_table` takes them · inputs : channels by the names of what it reads, in this order
    """

    name: str
    folder: Path
    weights: WeightsFile
    layers: dict
    grid: Grid
    inputs: dict[str, int]
    outputs: Outputs

    def shape(self) -> dict:
        """What `layers.layer_table` takes."""
        return {**self.layers, "labels": self.outputs.channels, "end": self.outputs.end, "inputs": self.inputs}

    def table(self) -> list[layers.Layer]:
        """Its layers."""
        return layers.layer_table(**self.shape())

    def computed_from(self) -> dict:
        """What of the card decides about its numbers, as JSON and a card can hold it: all but the weights, whose bytes
        do."""
        parts = {name: asdict(getattr(self, name)) for name in ("grid", "outputs")}
        said = {name: {key: value for key, value in part.items() if value is not None} for name, part in parts.items()}
        return {"name": self.name, "layers": self.layers, "inputs": list(self.inputs), **said}


@dataclass(frozen=True)
class Model:
    """What a card says.

    card : as it was read, for those who write cards · networks : by their names, those of its companion among them
    labels : the label table of the segmentation · parcels : that of the parcellation, or None
    scores : names of the quality network's channels, the first of which is no score; none without one
    memory_mb : what one run may take
    """

    name: str
    folder: Path
    card: dict
    networks: dict[str, Network]
    labels: Labels
    research_grade: bool
    memory_mb: int
    parcels: Labels | None = None
    scores: tuple[str, ...] = ()

    @property
    def network(self) -> Network:
        """The network that segments, where nothing else is asked for."""
        return self.networks["segmentation"]

    @property
    def weights(self) -> WeightsFile:
        """Of the network that segments."""
        return self.network.weights

    @property
    def labels_file(self) -> Path:
        """The table that `labels` was read from."""
        return self.folder / self.network.outputs.table

    @property
    def parcels_file(self) -> Path | None:
        """The table that `parcels` was read from."""
        network = self.networks.get("parcellation")
        return network and network.folder / network.outputs.table

    @property
    def resolution(self) -> float:
        """Of the network's grid, mm."""
        return self.network.grid.resolution_mm

    def companions(self, networks: Iterable[Network]) -> Path | None:
        """The folder of the model that some of these networks are taken from; None where all are its own."""
        return next((network.folder for network in networks if network.folder != self.folder), None)

    def needed(self, robust: bool = False, parcellation: bool = False, scores: bool = False) -> list[Network]:
        """The networks that a run takes, in their order. Raises SynthSegError("usage") for what the model lacks."""
        asked = list(ROBUST if robust else ("segmentation",))
        asked += [name for name, wanted in zip(COMPANIONS, (parcellation, scores), strict=True) if wanted]
        for name in asked:
            if name not in self.networks:
                what = {"parcellation": "the parcellation", "quality": "quality scores"}.get(name, "robust mode")
                text = f"{self.name}: its card has no network for {what}: leave that out, or take another model"
                raise SynthSegError("usage", text)
        return [self.networks[name] for name in asked]

    def computed_from(self, networks: Iterable[Network] | None = None) -> dict:
        """What of the card decides about results of these networks, by themselves of the segmentation's, as JSON can
        hold it: not its title, accuracy, addresses, memory, nor the weights and the tables, whose bytes do
        (`WeightsFile.sha256`, ``labels.tsv``)."""
        return {"networks": [network.computed_from() for network in networks or [self.network]]}


def segmenting(networks: Iterable[Network]) -> Network:
    """Of the networks of a run the one whose channels are the labels."""
    return next(network for network in networks if network.name in SEGMENTS)


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


def _beside(folder, name):
    """The folder of another model that a card in `folder` names: the one that is shipped so, else the one beside it, as
    the code of the workflow's jobs is a copy without models, else where any model is looked for."""
    places = (SHIPPED / name, folder.parent / name)
    return next((place for place in places if (place / "card.yaml").is_file()), None) or find_folder(name)


def load(name_or_folder: str | Path) -> Model:
    """Read and check a model folder. Raises SynthSegError("usage") with the file and the field that is wrong."""
    return _load(name_or_folder, companions=True)


def _load(name_or_folder, companions):
    """companions : whether networks are also taken from the model that the card names; of that model they are not"""
    folder = find_folder(name_or_folder)
    path = folder / "card.yaml"
    try:
        content = yaml_text.read(path)
    except (OSError, ValueError) as error:
        raise _unusable(path, " ".join(f"{error}".split())[:200]) from error
    model = _model(folder, path, content, companions)
    if model.research_grade and not is_shipped(folder):
        # A copy is the same; anything else would pass for it in the names of results.
        shipped = SHIPPED / model.name
        if shipped.is_dir() and not _same(model, _load(shipped, companions)):
            raise _unusable(path, f"{model.name} is the name of another network", "choose a name of its own")
    return model


def _same(model, other):
    """Whether each network of a model is also the other's, which may have more: a copy of an earlier version has."""

    def of(network):
        return network.computed_from(), network.weights.sha256

    return all(name in other.networks and of(mine) == of(other.networks[name]) for name, mine in model.networks.items())


def is_shipped(folder: Path) -> bool:
    """Whether it is a model's folder of this project."""
    return folder.resolve().parent == SHIPPED


def _model(folder, path, content, companions):
    card = _Fields(path, "", content)
    if "networks" not in card.content and "network" in card.content:
        raise _unusable(path, "it has the old form (network, input, posterior)", "see models/README.md for networks")
    networks = {}
    for n, entry in enumerate(card.take("networks", list)):
        network = _network(path, f"networks[{n}].", entry, networks)
        if network.name in networks:
            raise _unusable(path, f"networks[{n}].name {network.name} occurs twice")
        networks[network.name] = network
    if "segmentation" not in networks:
        raise _unusable(path, "no network is named segmentation", "name the one that gives labels so")
    companion = card.take("companions", str, None, form=NAME)
    if companion and companions:
        try:
            others = _load(_beside(folder, companion), companions=False).networks
        except SynthSegError as error:
            raise SynthSegError("usage", f"{path}: companions: {error.message}") from error
        networks |= {name: others[name] for name in COMPANIONS if name in others and name not in networks}
    if 0 < sum(name in networks for name in ROBUST) < len(ROBUST):
        raise _unusable(path, "robust mode needs networks named groups, denoised and robust", "add what is missing")
    _check_together(path, networks)
    tables = {name: _table(path, network) for name, network in networks.items()}
    if "robust" in networks and tables["robust"].index.tolist() != tables["segmentation"].index.tolist():
        raise _unusable(path, "robust and segmentation give other labels", "give both the same table")
    labels = tables["segmentation"]
    if "parcellation" in networks and np.isin(tables["parcellation"].index[1:], labels.index).any():
        raise _unusable(path, "a parcel has the number of a label", "give each a number of its own")
    if "quality" in networks and labels.quality_groups.max() >= networks["quality"].outputs.channels:
        raise _unusable(path, f"{networks['segmentation'].outputs.table} has a qc_group beyond the quality network's")
    return Model(
        name=card.take("name", str, form=NAME),
        folder=folder,
        card=content,
        networks=networks,
        labels=labels,
        research_grade=card.take("research_grade", bool, False),
        memory_mb=card.take("memory_mb", int, least=1),
        parcels=tables.get("parcellation"),
        scores=tables.get("quality", ()),
    )


def _check_together(path, networks):
    """What networks have in common: the voxels, and how often these are halved."""
    grid = networks["segmentation"].grid
    for name, network in networks.items():
        own, levels = network.grid, network.layers["levels"]
        companion = network.folder != path.parent
        if own.resolution_mm != grid.resolution_mm:
            remedy = "leave companions out" if companion else "give both the same resolution_mm"
            raise _unusable(path, f"{name} and segmentation have other voxels", remedy)
        if own.box is None and own != grid:
            remedy = "leave companions out" if companion else "leave it out"
            raise _unusable(path, f"{name} has another grid than segmentation", remedy)
        halvings = 2 ** (levels if network.layers["form"] == "encoder" else levels - 1)
        if own.pad_multiple % halvings:
            what = "box" if own.box else "pad_multiple"
            raise _unusable(path, f"{name}: grid.{what} {own.pad_multiple} is no multiple of {halvings}")


def _table(path, network):
    """The table of a network's channels: `Labels`, of the quality network the names; None where it has none."""
    outputs = network.outputs
    if outputs.table is None:
        return None
    file = network.folder / outputs.table
    found = read_scores(file) if network.name == "quality" else read_labels(file)
    if outputs.channels != len(found):
        what = f"{outputs.channels} channels, but {len(found)} rows in {outputs.table}"
        raise _unusable(path, what, "make them agree")
    return found


def _network(path, place, content, before) -> Network:
    """before : the networks that stand above it, by name"""
    entry = _Fields(path, place, content)
    name = entry.take("name", str, among=tuple(ROLES))
    reads, end = ROLES[name]
    shape, outputs = (_Fields(path, f"{place}{part}.", entry.take(part, dict)) for part in ("layers", "outputs"))
    channels = outputs.take("channels", int, least=2, most=256)
    # What may lack: a table where no labels come of it, smoothing and threshold where none are asked for.
    no_table = () if name in (*SEGMENTS, *COMPANIONS) else (None,)
    no_number = () if name in SEGMENTS else (0.0,)
    inputs = tuple(entry.take("inputs", list))
    if inputs != reads:  # which may be lists of lists
        given, wanted = reprlib.repr(list(inputs)), ", ".join(reads)
        raise _unusable(path, f"{place}inputs {given}", f"give [{wanted}]: this version has no other for {name}")
    network = Network(
        name=name,
        folder=path.parent,
        weights=_weights(path, place, entry.take("weights", dict)),
        layers={
            "levels": shape.take("levels", int, least=1, most=12),
            "features": shape.take("features", int, least=1, most=4096),
            "convolutions_per_level": shape.take("convolutions_per_level", int, least=1, most=64),
            "kernel": shape.take("kernel", int, least=1, most=31),
            "activation": shape.take("activation", str, among=layers.ACTIVATIONS),
            "form": shape.take("form", str, "unet", among=layers.FORMS),
            "prefix": shape.take("prefix", str, "unet", form=PREFIX),
            "levels_without_skip": shape.take("levels_without_skip", int, 0, least=0, most=12),
        },
        grid=_grid(path, place, entry, before),
        inputs={
            read: {"image": 1, "cortex": 2, "quality_groups": channels}.get(read)
            or (before[read].outputs.channels if read in before else 0)
            for read in inputs
        },
        outputs=Outputs(
            channels=channels,
            table=outputs.take("table", str, *no_table, form=FILE),
            end=outputs.take("end", str, among=layers.ENDS),
            smoothing_sigma=outputs.take("smoothing_sigma", float, *no_number, least=0, most=100),
            threshold=outputs.take("threshold", float, *no_number, least=0, most=1),
        ),
    )
    for fields in (entry, shape, outputs):
        fields.no_others()
    if not all(network.inputs.values()):
        raise _unusable(path, f"{place}inputs {', '.join(inputs)}", "put the network that it reads above it")
    if network.outputs.end != end:
        raise _unusable(path, f"{place}outputs.end {network.outputs.end}", f"give {end}: {name} is made of that")
    if network.layers["kernel"] % 2 == 0:
        raise _unusable(path, f"{place}layers.kernel {network.layers['kernel']} is even")
    return network


def _grid(path, place, entry, before) -> Grid:
    """Of a network that says none that of the segmentation."""
    content = entry.take("grid", dict, *([None] if "segmentation" in before else []))
    if content is None:
        return before["segmentation"].grid
    fields = _Fields(path, f"{place}grid.", content)
    resolution, box = fields.take("resolution_mm", float, above=0, most=100), None
    if entry.content.get("name") == "quality":
        box = multiple = smallest = fields.take("box", int, least=1, most=4096)
    else:
        multiple, smallest = (fields.take(name, int, least=1, most=4096) for name in ("pad_multiple", "min_size"))
    fields.no_others()
    return Grid(resolution, multiple, smallest, box)


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
    """Read labels.tsv or parcels.tsv.

    Raises SynthSegError("usage") when it is missing, has other columns, or contradicts itself.
    """

    def labels_of(rows):
        return Labels(
            index=np.array([int(row["index"]) for row in rows], dtype=np.int32),
            flip=np.array([int(row["flip_channel"]) for row in rows]),
            topology=np.array([int(row["topology_class"]) for row in rows]),
            quality_groups=np.array([int(row.get("qc_group") or 0) for row in rows]),
            names=[row["name"] for row in rows],
            freesurfer_names=[row["freesurfer_name"] for row in rows],
            hemispheres=[row["hemisphere"] for row in rows],
            colors=[row["color"] for row in rows],
        )

    labels = _read_table(Path(path), labels_of)
    n = len(labels)
    if n < 2 or labels.index[0] != 0:
        raise SynthSegError("usage", f"{path}: channels must count from 0, background first: correct the rows")
    if not all(re.fullmatch(COLOR[0], color) for color in labels.colors):
        raise SynthSegError("usage", f"{path}: color: each must be {COLOR[1]}: correct the rows")
    if not all(text.isprintable() for text in (*labels.names, *labels.freesurfer_names, *labels.hemispheres)):
        raise SynthSegError("usage", f"{path}: a name holds what cannot be printed: correct the rows")
    if len(set(labels.index.tolist())) != n:
        raise SynthSegError("usage", f"{path}: a label value occurs twice: correct column index")
    if not np.array_equal(np.sort(labels.flip), np.arange(n)) or np.any(labels.flip[labels.flip] != np.arange(n)):
        raise SynthSegError("usage", f"{path}: flipping twice must give each channel back: correct flip_channel")
    if labels.quality_groups.min() < 0:
        raise SynthSegError("usage", f"{path}: a qc_group is below 0: correct the rows")
    return labels


def read_scores(path: str | Path) -> tuple[str, ...]:
    """Read scores.tsv: the names of the quality network's channels. Raises as `read_labels` does."""
    names = _read_table(Path(path), lambda rows: tuple(row["name"].strip() for row in rows))
    if not all(name and name.isprintable() for name in names):
        raise SynthSegError("usage", f"{path}: a name is empty, or holds what cannot be printed: correct the rows")
    return names


def _read_table(path, make):
    """What is made of the rows of a table whose first column counts from 0."""
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "No file")  # a pipe would be waited for
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        made, channels = make(rows), [int(row["channel"]) for row in rows]
    except OSError as error:
        raise SynthSegError("usage", f"{path}: {error.strerror}: a model folder needs its label table") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, csv.Error) as error:
        raise SynthSegError("usage", f"{path}: not a usable label table, {error}: correct it") from error
    if channels != list(range(len(rows))):
        raise SynthSegError("usage", f"{path}: channels must count from 0, background first: correct the rows")
    return made
