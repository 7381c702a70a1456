"""Short hashes and settings as text."""

from synthseg_native.identity import keys


def test_parts_cannot_run_together():
    assert keys.digest("ab", "c") != keys.digest("a", "bc")


def test_settings_do_not_depend_on_order():
    assert keys.settings_json(a=1, b=None) == keys.settings_json(b=None, a=1)
