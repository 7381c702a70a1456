"""Quality figures of one segmentation, raw, as its run record keeps them. What is odd about them `quality` says.

No limit stands here: another limit, or another sentence, is no reason to run a network again.
"""

from collections.abc import Sequence

import numpy as np

from synthseg_native.networks.cards import Labels

# Faces of the volume that the network saw, which has its axes in RAS order: (axis, first or last plane) -> name.
FACES = {
    (0, 0): "left", (0, -1): "right", (1, 0): "back", (1, -1): "front", (2, 0): "bottom", (2, -1): "top",
}  # fmt: skip


def measure(
    labels_table: Labels,
    labels: np.ndarray,
    segmentation: object,
    voxel_mm: Sequence[float],
    scores: dict[str, float] | None = None,
) -> dict:
    """The figures, ready for JSON.

    labels_table : `cards.Labels` · labels (X, Y, Z) : label values of what the network saw, RAS, without padding
    segmentation : has counts, soft, confidence, confidences, removed, as `labels.Segmentation`
    voxel_mm : (3,) of that grid · scores : SynthSeg's own, by their names, where they were asked for

    Returns voxel_mm3; per label of the table, background first, in lists: values, voxels, soft_mm3 (sum of posteriors),
    confidence (mean posterior over its voxels, None without any); mean_confidence (the same over the foreground);
    removed_voxels ({topology class: voxels of detached parts that were dropped}, class 0: of the brain); and
    edge_voxels ({label value: {face of the image: voxels in its plane}}), those that are not 0; and scores.
    """
    size = float(np.prod(voxel_mm, dtype=np.float64))
    return {
        "voxel_mm3": size,
        "values": labels_table.index.tolist(),
        "voxels": np.asarray(segmentation.counts).tolist(),
        "soft_mm3": (np.asarray(segmentation.soft, dtype=np.float64) * size).tolist(),
        "confidence": [_number(value) for value in segmentation.confidences],
        "mean_confidence": _number(segmentation.confidence),
        "removed_voxels": {str(group): int(number) for group, number in segmentation.removed.items()},
        "edge_voxels": edge_voxels(labels),
        **({} if scores is None else {"scores": scores}),
    }


def _number(value) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def edge_voxels(labels: np.ndarray) -> dict[str, dict[str, int]]:
    """{label value: {face of the image: voxels in its plane}} of labels (X, Y, Z), RAS; those that are not 0."""
    found: dict[str, dict[str, int]] = {}
    for (axis, end), face in FACES.items():
        values, counts = np.unique(np.take(labels, end, axis=axis), return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            if value:
                found.setdefault(str(value), {})[face] = count
    return {value: found[value] for value in sorted(found, key=int)}
