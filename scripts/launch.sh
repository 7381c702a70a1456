# Find a Python and hand over to environment.py beside this file. First one that the locks fit (3.11 to 3.13); with a
# newer one environment.py looks further, and says what to install. -I: without the variables, modules and folders of
# another Python, or of where one stands.
unset LD_PRELOAD __PYVENV_LAUNCHER__
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit 1
libraries=${LD_LIBRARY_PATH-}
driver= # of LD_LIBRARY_PATH the folders of an NVIDIA driver, which a container may have there alone
IFS=: && set -f
for folder in $libraries; do
    [ ! -e "$folder/libcuda.so.1" ] || driver=$driver${driver:+:}$folder
done
unset IFS && set +f
for LD_LIBRARY_PATH in "$driver" "$libraries"; do # the second: a module system's Python that does not start without
    export LD_LIBRARY_PATH
    for newest in 13 99; do
        for python in python3 python3.13 python3.12 python3.11 python3.14 python; do
            if "$python" -I -c "import ctypes, ssl, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $newest))" 2>/dev/null; then
                exec "$python" -IS "$here/environment.py" "$@" # -S: the standard library is all it needs
            fi
        done
    done
done
echo "synthseg-native: no Python 3.11 to 3.13: install one (Debian, Ubuntu: sudo apt-get install python3 python3-venv; Fedora: sudo dnf install python3.13; macOS: brew install python@3.13)" >&2
exit 1
