"""Training of a small SynthSeg-like network by domain randomisation: `python -m training --help` in the checkout."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))  # the layer table, the label table and the rescaling are those of the engine
