#!/bin/sh
# Is this machine's NVIDIA GPU sound with the torch engine, equal, and how quick? One command, at most 8 minutes:
#
#   benchmarks/device_check.sh                 with python3, or PYTHON=/path/to/python3, which has PyTorch 2.11 or newer
#   benchmarks/device_check.sh --device cpu --size 64x64x64     without a GPU, to try it
#
# It verifies every operation, segments golden cases (robust mode with parcels and scores among them) and a phantom of
# 192 x 256 x 192 voxels by a network of SynthSeg's size, the latter by the llvm engine on the CPU too, to compare. It
# prints build/device_check.md, with one row to send back (tests/prove.py does all that). Packages that the Python lacks
# go to build/device_check/, from the wheels in .whl/ of this checkout where there is that folder, else by pip. To a
# machine without a network bring them, for its Python and processor; one with PyTorch, NumPy, SciPy, h5py, llvmlite,
# PyYAML, tqdm and pytest lacks one alone:
#
#   python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 -d .whl nibabel
set -eu
cd "$(dirname "$0")/.."
python=$(command -v "${PYTHON:-python3}") || { echo "device_check: ${PYTHON:-python3}: no such Python: set PYTHON" >&2; exit 2; }
site=$PWD/build/device_check/site
export PYTHONPATH="$site" PYTHONNOUSERSITE=1

lacking() {
    "$python" - <<'END'
import importlib.util, sys
if sys.version_info < (3, 11): sys.exit("device_check: Python 3.11 or newer is needed: set PYTHON")
# By the names of their modules; pytest, with what it needs, as the golden cases are a test's.
names = "torch numpy scipy h5py llvmlite nibabel typing_extensions yaml tqdm pytest iniconfig pluggy packaging pygments"
lacking = [name for name in names.split() if importlib.util.find_spec(name) is None]
print(*("pyyaml" if name == "yaml" else name for name in lacking))
END
}
missing=$(lacking)
case " $missing " in *" torch "*)
    echo "device_check: $python has no PyTorch: set PYTHON to one that has (2.11 or newer)" >&2
    exit 2
    ;;
esac
if [ -n "$missing" ]; then
    if [ -d .whl ]; then
        for wheel in .whl/*.whl; do "$python" -m zipfile -e "$wheel" "$site"; done # all that pip would do with them
    else
        # shellcheck disable=SC2086 # words
        "$python" -m pip install --quiet --no-deps --only-binary=:all: --target "$site" $missing >&2 || true
    fi
    missing=$(lacking)
    [ -z "$missing" ] || {
        echo "device_check: $python lacks $missing: install them, or put their wheels into .whl/ (see this file)" >&2
        exit 2
    }
fi
device=gpu
case " $* " in *" --device "*) device= ;; esac
[ -z "$device" ] || "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" || {
    echo "device_check: the PyTorch of $python sees no GPU (nvidia-smi says more): --device cpu tries all without one" >&2
    exit 3
}
exec "$python" tests/prove.py --python "$python" --engines llvm torch --parts golden full --page build/device_check.md \
    ${device:+--device $device} "$@"
