#!/bin/sh
# A Python with a CPU build of PyTorch, for the tests of the torch engine and of training; prints its path. The locked
# environment is for GPUs: on Linux it brings gigabytes of CUDA. Its folder is named by what this file says.
set -eu
cd "$(dirname "$0")/.."
folder=$PWD/.envs/ci-torch-$(sha256sum .ci/torch.sh | cut -c 1-12)
if ! "$folder/bin/python" -c "import torch, nibabel, tqdm, nilearn" 2>/dev/null; then
    rm -rf "$folder"
    mkdir -p "${folder%/*}"
    python3.11 -m venv "$folder" >&2
    "$folder/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy scipy h5py nibabel pyyaml \
        matplotlib tqdm nilearn >&2
fi
echo "$folder/bin/python"
