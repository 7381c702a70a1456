"""The configuration: checked against its schema, defaults filled in, every mistake in one line of its own."""

import difflib
import json
import os
from os import PathLike
from pathlib import Path

import jsonschema
import yaml

from synthseg_native.cohort import containers
from synthseg_native.errors import SynthSegError
from synthseg_native.networks.cards import LOADER


def read_schema(path: str | PathLike) -> dict:
    """The schema of the configuration, JSON schema written in YAML."""
    return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=LOADER)


def complete(config: dict, schema: dict, name: str = "config") -> dict:
    """A checked copy of config with the schema's defaults; `SynthSegError("usage")` names every mistake."""
    config = _with_defaults(config, schema)
    errors = sorted(jsonschema.Draft202012Validator(schema).iter_errors(config), key=lambda error: list(error.path))
    if errors:
        raise SynthSegError("usage", *(f"{name}: {line}" for error in errors for line in _lines(error)))
    return config


def _with_defaults(config: dict, schema: dict) -> dict:
    filled = dict(config)
    for key, part in schema["properties"].items():
        if key not in filled and "default" in part:
            filled[key] = part["default"]
        if isinstance(filled.get(key), str | list):
            filled[key] = _meant(filled[key], part)
        if isinstance(filled.get(key), str) and part.get("format") == "path":
            filled[key] = user_path(filled[key])
        if part.get("type") == "object" and isinstance(filled.get(key, {}), dict):
            filled[key] = _with_defaults(filled.get(key, {}), part)
    return filled


def user_path(text: str) -> str:
    """A path as somebody writes it in a configuration: ~ is the home, and what changes nothing is left out.

    Raises SynthSegError("usage") for the home of a user that there is not.

    >>> user_path("./results/"), user_path("a//b/../c")
    ('results', 'a/c')
    """
    try:
        return os.path.normpath(Path(text).expanduser()) if text else text
    except RuntimeError:  # ~name
        raise SynthSegError("usage", f"config: {text}: there is no such user: write the whole path") from None


def _meant(value: object, part: dict) -> object:
    """What texts stand for: ``--config allow_small_model=true`` and values in brackets and braces reach us as texts.

    >>> _meant("true", {"type": "boolean"}), _meant(["2", "3"], {"items": {"type": "integer"}})
    (True, [2, 3])
    >>> _meant("2", {"type": "string"}), _meant("yes", {"type": "boolean"})
    ('2', 'yes')
    """
    fits = jsonschema.Draft202012Validator(part).is_valid
    if fits(value):
        return value
    meant = [_word(item) for item in value] if isinstance(value, list) else _word(value)
    return meant if fits(meant) else value


def _word(value: object) -> object:
    """The number, true, false or null that a text is; anything else as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


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
    if error.schema.get("format") == "path" and error.validator == "pattern":
        folder, name = os.path.split(error.instance)
        return [f"{where.rstrip('.')}: {error.instance} lies outside of the working directory: set it to {name}, and "
                f"add --directory {folder} to the call (paths in the configuration then start there)"]  # fmt: skip
    about = error.schema.get("description", "")
    return [f"{where.rstrip('.')}: {error.message}" + (f" ({about})" if about else "")]


def _unknown(path: str, key: str, known: list[str], where: str) -> str:
    near = [where + name for name in difflib.get_close_matches(key, known, n=2)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known keys are {', '.join(known)}"
    return f"{path}: unknown key; {hint}"


def complete_reference(reference: dict, model_name: str) -> dict:
    """The section `reference` with what its keys imply; `SynthSegError("usage")` for what cannot work."""
    kind, runtime = reference["kind"], reference["runtime"]
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
