"""Command line: fetch-maps, train, export, evaluate."""

import argparse
import sys
from pathlib import Path

import yaml

from synthseg_native.errors import SynthSegError

from . import ROOT, maps


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--config", type=Path, default=ROOT / "training" / "compact2mm.yaml")
    parser.add_argument("--maps", type=Path, help="folder of the label maps, instead of the configuration's")
    parser.add_argument("--output", type=Path, help="folder of checkpoint and curve, instead of the configuration's")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch-maps", help="fetch the label maps (32 MB) and check them")
    train = commands.add_parser("train", help="train, or carry on from the checkpoint in the output folder")
    train.add_argument("--from", dest="start", type=Path, metavar="H5", help="weights to begin with")
    train.add_argument("--iterations", type=int, help="stop after this many more")
    try:
        return run(parser.parse_args(arguments))
    except SynthSegError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def run(options):
    config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    folder = options.maps or ROOT / config["maps"]
    output = options.output or ROOT / config["output"]
    if options.command == "fetch-maps":
        maps.fetch(folder)
    elif options.command == "train":
        from .train import Trainer

        trainer = Trainer(config, maps.load(folder), maps.load(folder, held_out=True))
        checkpoint = output / "checkpoint.pt"
        if checkpoint.exists():
            trainer.resume(checkpoint)
        elif options.start:
            trainer.start_from(options.start)
        trainer.run(output, options.iterations)
    return 0


if __name__ == "__main__":
    sys.exit(main())
