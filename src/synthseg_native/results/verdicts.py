"""The verdict of a comparison in words. Apart from `compare`, whose libraries those who only tell it do not need."""


def verdict_text(verdict: str, reference_kind: str | None) -> str:
    """The verdict with what it is a verdict on.

    >>> verdict_text("identical", "own"), verdict_text("different", "upstream"), verdict_text("not_compared", None)
    ('identical (to the own reference)', "different (from upstream's image)", 'not compared')
    """
    to = {"own": "the own reference", "upstream": "upstream's image", "existing": "the existing label map"}
    preposition = "from" if verdict == "different" else "to"
    if verdict == "not_compared" or reference_kind is None:
        return verdict.replace("_", " ")
    return f"{verdict} ({preposition} {to.get(reference_kind, reference_kind)})"
