"""A hostile surrounding: variables, a home and a folder to stand in, with all that the libraries read set against us.

The names are from the sources of the installed packages (`environ`, `getenv`) and the texts of their binaries.
"""

from pathlib import Path

RAISES = "raise SystemExit('a foreign module was run')\n"
CODE = (
    "PYTHONHOME PYTHONPATH PYTHONSTARTUP PYTHONUSERBASE PYTHONPLATLIBDIR PYTHONBREAKPOINT PYTHONINSPECT PYTHONCASEOK "
    "PYTHONIOENCODING PYTHONPYCACHEPREFIX PYTHONEXECUTABLE __PYVENV_LAUNCHER__ VIRTUAL_ENV CONDA_PREFIX BASH_ENV ENV "
    "CDPATH HDF5_PLUGIN_PATH TF_MLIR_TFR_LIB_DIR TF_PLUGGABLE_DEVICE_LIBRARY_PATH LLVMLITE_DIST_TEST"
)
NUMBERS = {
    "PYTHONOPTIMIZE": "2",
    "PYTHONWARNINGS": "error",
    "PYTHONHASHSEED": "never",
    "PYTHONUTF8": "2",
    "PYTHONDEVMODE": "1",
    "PYTHONMALLOC": "nonsense",
    "SCIPY_ARRAY_API": "1",
    "SCIPY_DEVICE": "tpu",
    "NPY_PROMOTION_STATE": "legacy",
    "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F",
    "NPY_ENABLE_CPU_FEATURES": "NONSENSE",
    "NUMPY_MADVISE_HUGEPAGE": "nonsense",
    "KERAS_BACKEND": "jax",
    "TF_USE_LEGACY_KERAS": "1",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "TF_SET_ONEDNN_FPMATH_MODE": "BF16",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "DNNL_DEFAULT_FPMATH_MODE": "BF16",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "OV_CPU_MAX_ISA": "SSE41",
    "TF_USE_DEEP_CONV2D": "1",
    "TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_LEVEL": "UNSAFE_FORCE_ALL",
    "TF_NUM_INTRAOP_THREADS": "many",
    "TF_NUM_INTEROP_THREADS": "0.5",
    "TF_OVERRIDE_GLOBAL_THREADPOOL": "1",
    "TF_XLA_FLAGS": "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit",
    "XLA_FLAGS": "--nonsense",
    "TF_CONFIG": "not JSON",
    "TF_CPP_MAX_VLOG_LEVEL": "9",
    "TF_CPP_MIN_LOG_LEVEL": "0",
    "TF_FUNCTION_JIT_COMPILE_DEFAULT": "1",
    "TF_DUMP_GRAPH_PREFIX": "-",
    "AUTOGRAPH_STRICT_CONVERSION": "1",
    "OPENBLAS_CORETYPE": "Prescott",
    "OPENBLAS_NUM_THREADS": "-3",
    "OMP_NUM_THREADS": "a,b",
    "OMP_SCHEDULE": "nonsense",
    "OMP_DISPLAY_ENV": "verbose",
    "GOMP_CPU_AFFINITY": "4096",
    "KMP_AFFINITY": "nonsense",
    "MKL_NUM_THREADS": "none",
    "MKL_CBWR": "COMPATIBLE",
    "NVIDIA_TF32_OVERRIDE": "1",
    "CUBLAS_WORKSPACE_CONFIG": "nonsense",
    "HDF5_DISABLE_VERSION_CHECK": "0",
    "HDF5_USE_FILE_LOCKING": "nonsense",
    "MALLOC_PERTURB_": "165",
    "GLIBC_TUNABLES": "glibc.malloc.check=3",
    "LANG": "C",
    "LC_ALL": "C",
}
SETTINGS = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "SNAKEMAKE_PROFILE": "nonsense",
    "SNAKEMAKE_OUTPUT_CACHE": "/proc/nothing",
    "SNAKEMAKE_CONDA_PREFIX": "/proc/nothing",
    "SYNTHSEG_NATIVE_CODE": "/proc/nothing",
    "SYNTHSEG_NATIVE_MANIFEST": "/proc/nothing",
    "PIP_USER": "1",
    "PIP_TARGET": "/proc/nothing",
    "UV_CONFIG_FILE": "/proc/nothing",
    "TMPDIR": "/no/such/folder",
    "TEMP": "/no/such/folder",
    "DOCKER_DEFAULT_PLATFORM": "linux/s390x",
    "APPTAINERENV_PYTHONPATH": "/proc/nothing",
    "SINGULARITYENV_PYTHONPATH": "/proc/nothing",
    "LD_LIBRARY_PATH": "HERE/libraries",
    "DYLD_LIBRARY_PATH": "HERE/libraries",
    "MATPLOTLIBRC": "HERE/home/.config/matplotlib/matplotlibrc",
    "MPLCONFIGDIR": "HERE/home/.config/matplotlib",
    "KERAS_HOME": "HERE/home/.keras",
    "XDG_CACHE_HOME": "HERE/a file",
    "XDG_CONFIG_HOME": "HERE/a file",
    "XDG_DATA_HOME": "HERE/a file",
}
MATPLOTLIB = "backend: nonsense\nsavefig.dpi: 7\ntext.usetex: True\nfont.size: 99\ntext.antialiased: False\n"
MODULES = ("random", "numpy", "yaml", "enum", "email", "csv", "nibabel", "sitecustomize", "usercustomize", "site")
FILES = {
    "home/.keras/keras.json": '{"floatx": "float16", "backend": "jax", "image_data_format": "channels_first"}',
    "home/.config/matplotlib/matplotlibrc": MATPLOTLIB,
    "home/.matplotlib/matplotlibrc": MATPLOTLIB,
    "home/.config/pip/pip.conf": "[global]\nuser = true\ntarget = /proc/nothing\n",
    "home/.pip/pip.conf": "this is no configuration",
    "home/.config/uv/uv.toml": "this is no TOML",
    "home/.config/snakemake/config.yaml": "cores: [nonsense\n",
    "home/.config/snakemake/default/config.yaml": "cores: [nonsense\n",
    "home/.bashrc": "echo hostile; exit 3\n",
    "home/.profile": "echo hostile; exit 3\n",
    "stand/matplotlibrc": MATPLOTLIB,
    "stand/profiles/default/config.yaml": "cores: [nonsense\n",
    "stand/Snakefile": RAISES,
    "stand/.env": "PYTHONHOME=/proc/nothing\n",
    "stand/uv.toml": "this is no TOML",
    "stand/.python-version": "2.7",
    "stand/pyvenv.cfg": "home = /proc/nothing\n",
    "a file": "",
    **{f"stand/{name}.py": RAISES for name in MODULES},
    **{f"home/.local/lib/python3.{n}/site-packages/{name}.py": RAISES for n in (11, 12, 13) for name in MODULES},
    # What a module system's libraries are to a Python that was linked to others.
    **{f"libraries/{name}": "" for name in ("libstdc++.so.6", "libz.so.1", "libssl.so.3", "libffi.so.8")},
}


def surround(here: Path) -> dict[str, str]:
    """Write the files into a folder; return the variables. One stands in `stand`, and `home` is the home."""
    for name, text in FILES.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)
    variables = dict.fromkeys(CODE.split(), f"{here}/stand") | NUMBERS | SETTINGS
    return {name: value.replace("HERE", str(here)) for name, value in variables.items()} | {"HOME": f"{here}/home"}
