"""What the values of a scan tell about it that its header does not."""

import numpy as np

AIR_HU, LEAST_AIR = (-1100, -900), 0.1  # the share of voxels that are air, where values are Hounsfield units
PLANES = 16  # that are looked at for labels
MOST_LABELS = 300  # values, in those planes: FreeSurfer's finest parcellation has fewer
FEW = 10  # values: as few are labels only where they are counted up, 0, 1, 2, 3
LEAST_ALIKE = 0.5  # the share of neighbours that have one value: 0.86 and more in label maps, up to 0.12 in scans


def flags(data: np.ndarray, ct: bool = False) -> set[str]:
    """Which of `reading.FLAGS` the values of a scan (X, Y, Z) raise. ct : whether they are known to be Hounsfield units

    A field of view in air and a head, as CT has it, and a mask of the head:

    >>> air = np.full((20, 20, 20), -1000)
    >>> air[5:15, 5:15, 5:15] = np.arange(1000).reshape(10, 10, 10)
    >>> flags(air), flags(air, ct=True), flags((air > 0).astype(np.uint8))
    ({'values_as_ct'}, set(), {'values_as_labels'})
    """
    found = set()
    if data.min() == data.max():
        return {"constant_image"}
    if not ct and _air(data) >= LEAST_AIR:
        found.add("values_as_ct")
    if _as_labels(data):
        found.add("values_as_labels")
    return found


def _air(data) -> float:
    """The share of voxels that CT would call air."""
    if data.min() > AIR_HU[1]:
        return 0.0
    low, high = AIR_HU
    return sum(np.count_nonzero((plane >= low) & (plane <= high)) for plane in np.moveaxis(data, 2, 0)) / data.size


def _as_labels(data) -> bool:
    """Whether there are few values, all whole numbers, and most neighbours have the same, background aside."""
    planes = np.moveaxis(data, 2, 0)[np.unique(np.linspace(0, data.shape[2] - 1, PLANES).astype(int))]
    if data.dtype.kind == "f" and np.any(planes != np.rint(planes)):
        return False
    found, counts = np.unique(planes, return_counts=True)
    if len(found) <= 2:
        return True
    if len(found) > MOST_LABELS or (len(found) < FEW and found[-1] - found[0] >= len(found)):
        return False
    background = found[counts.argmax()]
    same = pairs = 0
    for axis in (1, 2):
        one, other = np.moveaxis(planes, axis, 0)[:-1], np.moveaxis(planes, axis, 0)[1:]
        inside = (one != background) & (other != background)
        pairs += np.count_nonzero(inside)
        same += np.count_nonzero(inside & (one == other))
    return pairs > 0 and same / pairs >= LEAST_ALIKE
