"""Short hashes, settings as text, and the flags that settings stand for."""

import hashlib
import json


def digest(*parts: object) -> str:
    """12 hexadecimal digits of the SHA-256 of text or bytes, in order."""
    sha = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        sha.update(len(data).to_bytes(8, "little") + data)
    return sha.hexdigest()[:12]


def settings_json(**settings: object) -> str:
    """Settings as one line of JSON with sorted keys: equal settings, equal text."""
    return json.dumps(settings, sort_keys=True, separators=(",", ":"))


def flags(settings: dict) -> list[str]:
    """The flags that settings of a run stand for; the engine, reference.py and upstream spell these the same.

    ct: bool; mode: "default", "fast" or "robust"; crop: None or three sizes in voxels of the network's grid (RAS);
    parcels: None or what their volumes add up to, which upstream does not ask. Each may lack.
    """
    found = ["--ct"] if settings.get("ct") else []
    found += {"fast": ["--fast"], "robust": ["--robust"]}.get(settings.get("mode"), [])
    if parcels := settings.get("parcels"):
        found += ["--parc", *([] if settings.get("kind") == "upstream" else ["--parcel-volumes", parcels])]
    return found + (["--crop", *map(str, settings["crop"])] if settings.get("crop") else [])
