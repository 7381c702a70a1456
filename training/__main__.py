"""Train a small SynthSeg-like network by domain randomisation."""

import argparse
import sys
from pathlib import Path

import yaml

from synthseg_native.errors import SynthSegError

from . import ROOT, maps

EXAMPLES = """\
in the folder of the checkout, with the interpreter of the training environment:
  python -m training fetch-maps
  python -m training train --from models/compact2mm/compact2mm.h5
  python -m training train                   (carries on where it was stopped)
  python -m training export                  (a model folder, training/out/compact2mm)
  python -m training evaluate training/out/compact2mm --card
  python -m training look training/out/compact2mm --scan T1.nii.gz --pictures build/look
"""


def parser():
    p = argparse.ArgumentParser(
        prog="python -m training",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--config", type=Path, default=ROOT / "training" / "compact2mm.yaml", help="default: %(default)s")
    p.add_argument("--maps", type=Path, help="folder of the label maps (default: the configuration's)")
    p.add_argument("--output", type=Path, help="folder of checkpoint and curve (default: the configuration's)")
    commands = p.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch-maps", help="fetch the label maps (32 MB) and check them")
    train = commands.add_parser("train", help="train, or carry on from the checkpoint in the output folder")
    train.add_argument("--from", dest="start", type=Path, metavar="H5", help="weights to begin with")
    train.add_argument("--iterations", type=int, metavar="N", help="stop after this many more")
    export = commands.add_parser("export", help="make a model folder of the checkpoint in the output folder")
    export.add_argument("--to", type=Path, metavar="FOLDER", help="default: the model's name, in the output folder")
    evaluate = commands.add_parser("evaluate", help="measure a model folder on the maps held out")
    evaluate.add_argument("--table", type=Path, metavar="TSV", help="write Dice per contrast, slices and structure")
    look = commands.add_parser("look", help="measure a model folder on the ICBM 152 template, and on a real scan")
    look.add_argument("--scan", type=Path, metavar="NIFTI", help="a T1: how stable is its label map")
    for command in (evaluate, look):
        command.add_argument("model", type=Path, metavar="FOLDER")
        command.add_argument("--card", action="store_true", help="write the figures into the model's card")
        command.add_argument("--pictures", type=Path, metavar="FOLDER", help="put pictures there")
        command.add_argument("--python", default=sys.executable, help="interpreter that has the engine (default: this)")
        command.add_argument("--engine", default="torch", metavar="NAME", help="default: torch")
    return p


def main(arguments=None) -> int:
    """Run a command; returns the exit status."""
    try:
        return _run(parser().parse_args(arguments))
    except SynthSegError as error:
        print(f"training: {error.message}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("training: stopped: the checkpoint is kept, call train again to carry on", file=sys.stderr)
        return 130


def _run(options):
    try:
        config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise SynthSegError("usage", f"{options.config}: no readable configuration, {reason}: correct it") from error
    folder = options.maps or ROOT / config["maps"]
    output = options.output or ROOT / config["output"]
    checkpoint = output / "checkpoint.pt"
    if options.command == "fetch-maps":
        maps.fetch(folder)
    elif options.command == "train":
        from .train import Trainer

        trainer = Trainer(config, maps.load(folder), maps.load(folder, held_out=True))
        if checkpoint.exists():
            trainer.resume(checkpoint)
        elif options.start:
            trainer.start_from(options.start)
        trainer.run(output, options.iterations)
    elif options.command == "export":
        from .export import export

        print(export(checkpoint, config, options.to or output / config["name"]))
    else:
        how = {"python": options.python, "engine": options.engine, "threads": config["threads"]}
        if options.pictures:
            options.pictures.mkdir(parents=True, exist_ok=True)
            how["pictures"] = options.pictures
        if options.command == "look":
            from .export import note_agreement
            from .look import look

            measures = look(options.model, scan=options.scan, **how)
            if options.card:
                note_agreement(options.model, measures)
            return 0
        from . import evaluate

        rows = evaluate.evaluate(options.model, config, maps.load(folder, held_out=True), table=options.table, **how)
        if options.card:
            evaluate.write_to_card(options.model, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
