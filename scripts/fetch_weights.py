"""Fetch a model's weights to a file, resumed and checked (a workflow step; also useful by hand)."""

import argparse
import sys
from pathlib import Path

from synthseg_native import stopping
from synthseg_native.errors import SynthSegError
from synthseg_native.networks import cards, weights


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="model folder with card.yaml")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="where the weights go")
    options = parser.parse_args(argv)
    try:
        card_path = options.model / "card.yaml"
        if not card_path.is_file():
            raise SynthSegError("usage", f"{card_path}: no such model card: name a folder of models/")
        expected = cards.load(options.model).weights
        if not expected.urls:
            raise SynthSegError("usage", f"{card_path}: has no download address: the weights lie beside the card")
        weights.fetch(expected, options.out)
    except SynthSegError as error:
        print(f"fetch_weights: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(stopping.run(main))
