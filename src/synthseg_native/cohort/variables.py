"""Which of the caller's variables reach the programs that this project starts.

A list of what is let through: the libraries read hundreds, and some change numbers without a word
(TF_SET_ONEDNN_FPMATH_MODE, NVIDIA_TF32_OVERRIDE, SCIPY_ARRAY_API), run code (PYTHONPATH, BASH_ENV, LD_PRELOAD) or stop
a run (MPLBACKEND). SYNTHSEG_NATIVE_LET_THROUGH names more of them, for what a site needs. Standard library only.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

MORE = "SYNTHSEG_NATIVE_LET_THROUGH"
NAMES = frozenset(
    """
    PATH HOME USER LOGNAME SHELL PWD TERM COLORTERM COLUMNS LINES NO_COLOR LANG LANGUAGE TZ
    XDG_RUNTIME_DIR XDG_CONFIG_DIRS DBUS_SESSION_BUS_ADDRESS SSH_AUTH_SOCK KRB5CCNAME KRB5_CONFIG
    http_proxy https_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE NETRC
    CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_CACHE_PATH CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
    NVIDIA_VISIBLE_DEVICES NVIDIA_DRIVER_CAPABILITIES
    DOCKER_HOST DOCKER_CONTEXT DOCKER_CONFIG DOCKER_CERT_PATH DOCKER_TLS DOCKER_TLS_VERIFY DOCKER_API_VERSION
    CONTAINER_HOST CONTAINER_SSHKEY CONTAINERS_STORAGE_CONF CONTAINERS_REGISTRIES_CONF REGISTRY_AUTH_FILE
    CONTAINERS_CONF BUILDAH_ISOLATION STORAGE_DRIVER
    APPTAINER_CACHEDIR APPTAINER_TMPDIR APPTAINER_CONFIGDIR SINGULARITY_CACHEDIR SINGULARITY_TMPDIR
    PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_NO_INDEX PIP_PROXY PIP_CERT PIP_CLIENT_CERT PIP_TRUSTED_HOST
    PIP_TIMEOUT PIP_DEFAULT_TIMEOUT PIP_RETRIES PIP_CACHE_DIR PIP_NO_CACHE_DIR PIP_KEYRING_PROVIDER PIP_CONFIG_FILE
    UV_DEFAULT_INDEX UV_INDEX UV_INDEX_URL UV_EXTRA_INDEX_URL UV_FIND_LINKS UV_OFFLINE UV_NATIVE_TLS UV_SYSTEM_CERTS
    UV_INSECURE_HOST UV_HTTP_TIMEOUT UV_KEYRING_PROVIDER UV_CACHE_DIR UV_NO_CACHE UV_LINK_MODE UV_PYTHON_INSTALL_DIR
    UV_CONCURRENT_DOWNLOADS UV_CONCURRENT_INSTALLS PYENV_VERSION PYENV_ROOT
    PYTHONDONTWRITEBYTECODE CI NO_MKDOCS_2_WARNING
    """.split()  # noqa: SIM905
)
OF_A_RUN = ("SYNTHSEG_NATIVE_CODE", "SYNTHSEG_NATIVE_MANIFEST")  # which a run sets for its own jobs
# Of the batch systems, of uv's named indexes, of what finds a Python (as pyenv), of this project and its tests.
PREFIXES = ("LC_", "SLURM", "SBATCH_", "SQUEUE_", "SACCT_", "PBS_", "LSF_", "LSB_", "SGE_", "FLUX_", "_CONDOR_")
PREFIXES += ("UV_INDEX_", "ASDF_", "MISE_", "SYNTHSEG_", "REQUIRE_", "PYTEST_")
# Values that any of these may have; with another one they are left out.
THREADS, YES_OR_NO = r"[1-9]\d{0,3}", r"TRUE|FALSE|BEST_EFFORT|0|1"
VALUES = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), THREADS)
VALUES["HDF5_USE_FILE_LOCKING"] = YES_OR_NO  # for file systems without locks
# Folders to write to. One that is none, or none that could be made, counts as not named: so do the libraries' defaults.
TEMPORARY, PLACES = ("TMPDIR", "TEMP", "TMP"), ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")


def let_through(env: Mapping[str, str]) -> dict[str, str]:
    """Of these variables what the programs get.

    >>> let_through({"HOME": "/home/me", "PYTHONPATH": "/mine", "SLURM_JOB_ID": "7", "OMP_NUM_THREADS": "many"})
    {'HOME': '/home/me', 'SLURM_JOB_ID': '7'}
    """
    more = env.get(MORE, "").replace(",", " ").split()
    return {name: value for name, value in env.items() if name in more or _may(name, value)}


def _may(name: str, value: str) -> bool:
    if name in TEMPORARY:
        return Path(value).is_absolute() and os.access(value, os.W_OK | os.X_OK)
    if name in PLACES:
        return Path(value).is_absolute() and not Path(value).is_file()
    if name in VALUES:
        return re.fullmatch(VALUES[name], value) is not None
    return name in NAMES or name.startswith(PREFIXES)
