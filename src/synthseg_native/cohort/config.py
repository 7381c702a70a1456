"""The configuration: checked against its schema, defaults filled in, every mistake in one line of its own."""

import datetime
import difflib
import functools
import math
import os
from collections.abc import Iterator
from os import PathLike

import jsonschema
import yaml

from synthseg_native import yaml_text
from synthseg_native.cohort import containers
from synthseg_native.engines import FORMER, unknown
from synthseg_native.errors import SynthSegError
from synthseg_native.files import user_path


@functools.cache
def read_schema(path: str | PathLike) -> dict:
    """The schema of the configuration, JSON schema written in YAML."""
    return yaml_text.read(path)


def complete(config: dict, schema: dict, name: str = "config") -> dict:
    """A checked copy of config with the schema's defaults; `SynthSegError("usage")` names every mistake."""
    config = _with_defaults(config, schema)
    errors = sorted(jsonschema.Draft202012Validator(schema).iter_errors(config), key=lambda error: list(error.path))
    lines = [line for error in errors for line in _lines(error)] + list(_not_finite(config))
    if lines:
        raise SynthSegError("usage", *(f"{name}: {line}" for line in lines))
    return config


def _not_finite(config: dict, where: str = "") -> Iterator[str]:
    """Lines about numbers that are none: nothing is less than NaN, so that no limit of the schema would hold it."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _not_finite(value, f"{where}{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{where}{key}: {value} is no finite number: give one"


def _with_defaults(config: dict, schema: dict) -> dict:
    filled = dict(config)
    for key, part in schema["properties"].items():
        if key not in filled and "default" in part:
            filled[key] = part["default"]
        if key in filled:
            filled[key] = _meant(filled[key], part)
        if isinstance(filled.get(key), str) and part.get("format") == "path":
            try:
                filled[key] = user_path(filled[key])
            except SynthSegError as error:
                raise SynthSegError("usage", f"config: {error.message}") from None
        if part.get("type") == "object" and isinstance(filled.get(key, {}), dict):
            filled[key] = _with_defaults(filled.get(key, {}), part)
    return filled


def _meant(value: object, part: dict) -> object:
    """What a value stands for that does not fit as it is: a text for the number or truth value that YAML would make of
    it, for a list of one, or of several with commas between; a number or a date for the text that it is.

    ``--config allow_small_model=true`` and values in brackets and braces reach us as texts.

    >>> _meant("true", {"type": "boolean"}), _meant(["2", "3"], {"items": {"type": "integer"}})
    (True, [2, 3])
    >>> _meant("2", {"type": "string"}), _meant("perhaps", {"type": "boolean"}), _meant(2024, {"type": "string"})
    ('2', 'perhaps', '2024')
    >>> _meant("torch, llvm", {"type": "array", "items": {"enum": ["torch", "llvm"]}})
    ['torch', 'llvm']
    """
    fits = jsonschema.Draft202012Validator(part).is_valid
    if fits(value):
        return _whole(value)
    ways = []
    if isinstance(value, str):
        words = [word.strip() for word in value.split(",")]
        ways = [_word(value), words, [_word(word) for word in words]]
    elif isinstance(value, list):
        ways = [[_word(item) for item in value]]
    elif isinstance(value, int | datetime.date) and not isinstance(value, bool):
        ways = [str(value)]
    return next((_whole(meant) for meant in ways if fits(meant)), value)


def _whole(value: object) -> object:
    """A whole number as one, also where it is written 2.0: for the schema these are the same, and for programs not."""
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _word(value: object) -> object:
    """The number, true, false or null that a text is, as YAML has it (yes and no too); anything else as it is."""
    try:
        meant = yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        return value
    if isinstance(meant, str):
        try:
            return float(meant)  # 1e-3, which YAML 1.1 takes for a text
        except ValueError:
            return value
    return meant


def _lines(error: jsonschema.ValidationError) -> list[str]:
    # Of alternatives the one that the value comes closest to: a fault in an item, not "under any of the schemas".
    within = [other for other in error.context or () if len(other.path) > 0]
    if within:
        return [line for other in within for line in _lines(other)]
    where = "".join(f"{part}." for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        # In YAML a key may be a number or, as "on" and "no" are, true or false.
        return [_unknown(f"{where}{key}", str(key), known, where) for key in error.instance if key not in known]
    if error.validator == "required":
        return [f"{where}{error.message}: add it"]
    if error.schema.get("format") == "path" and error.validator == "pattern" and error.instance in ("", "."):
        return [f"{where.rstrip('.')}: {error.instance!r} names no folder of its own: write results, or another name"]
    if error.schema.get("format") == "path" and error.validator == "pattern":
        folder, name = os.path.split(error.instance)
        return [f"{where.rstrip('.')}: {error.instance} lies outside of the working directory: set it to {name}, and "
                f"add --directory {folder} to the call (paths in the configuration then start there)"]  # fmt: skip
    if isinstance(error.instance, str) and error.instance in FORMER:
        return [f"{where.rstrip('.')}: {unknown(error.instance)}"]
    about = error.schema.get("description", "")
    if error.validator == "anyOf":
        return [f"{where.rstrip('.')}: {error.instance!r} does not fit" + (f" ({about})" if about else "")]
    return [f"{where.rstrip('.')}: {error.message}" + (f" ({about})" if about else "")]


def _unknown(path: str, key: str, known: list[str], where: str) -> str:
    near = [where + name for name in difflib.get_close_matches(key, known, n=2)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known keys are {', '.join(known)}"
    return f"{path}: unknown key; {hint}"


def complete_reference(reference: dict, model_name: str) -> dict:
    """The section `reference` with what its keys imply; `SynthSegError("usage")` for what cannot work."""
    kind, runtime, image = reference["kind"], reference["runtime"], reference["image"]
    if image and image.startswith("~"):  # a file for Apptainer; the name of an image stays as it is
        reference = reference | {"image": user_path(image)}
    problem = None
    if kind == "existing" and not reference["pattern"]:
        problem = "pattern: not set: say where your label maps are, as in /maps/{participant_id}_synthseg.nii.gz"
    elif kind == "upstream" and runtime == "local":
        problem = "runtime: kind upstream needs its container: docker, podman or apptainer"
    elif kind == "upstream" and runtime != "none" and model_name not in containers.UPSTREAM_MODELS:
        known = " and ".join(containers.UPSTREAM_MODELS)
        problem = f"kind: the upstream image runs {known}, not {model_name}: use kind own"
    elif kind == "own" and reference["image"] and runtime != "apptainer":
        problem = "image: kind own builds its image (reference.base_image names its base): leave it out"
    if problem:
        raise SynthSegError("usage", f"config: reference.{problem}")
    base = reference["base_image"] or os.environ.get("SYNTHSEG_BASE_IMAGE") or containers.BASE_IMAGE
    # The step of kind existing only reads a file, whatever runtime is asked for.
    return reference | {"base_image": base, "runtime": "local" if kind == "existing" else runtime}


def key_table(schema: dict, prefix: str = "") -> list[str]:
    """Rows of a Markdown table: key, default, meaning. What config/README.md holds."""
    rows = []
    for key, part in schema["properties"].items():
        if part.get("type") == "object":
            rows += key_table(part, f"{prefix}{key}.")
        else:
            default = yaml.safe_dump(part.get("default"), default_flow_style=True).removesuffix("...\n").strip()
            rows.append(f"| `{prefix}{key}` | `{default}` | {part['description']} |")
    return rows
