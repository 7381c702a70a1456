"""The image files that are read and written, by their names. Standard library only."""

from pathlib import Path

IMAGE_EXTENSIONS = (".nii.gz", ".nii", ".mgz", ".mgh")


def image_extension(path: str | Path) -> str:
    """The extension of an image file's name, of IMAGE_EXTENSIONS; "" where it has none of them.

    >>> image_extension("sub-01_T1w.NII.gz"), image_extension("notes.txt")
    ('.nii.gz', '')
    """
    return next((ending for ending in IMAGE_EXTENSIONS if Path(path).name.lower().endswith(ending)), "")
