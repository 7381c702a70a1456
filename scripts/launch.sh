# Find a Python and hand over to environment.py beside this file. First one that the locks fit (3.11 to 3.13); with a
# newer one environment.py looks further, and says what to install.
unset PYTHONHOME PYTHONPATH PYTHONSTARTUP # what they let in is another Python's
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit 1
for newest in 13 99; do
    for python in python3 python3.13 python3.12 python3.11 python3.14 python; do
        if "$python" -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $newest))" 2>/dev/null; then
            exec "$python" -S "$here/environment.py" "$@" # -S: the standard library is all it needs, and so it starts at once
        fi
    done
done
echo "synthseg-native: no Python 3.11 to 3.13: install one (Debian, Ubuntu: sudo apt-get install python3 python3-venv; Fedora: sudo dnf install python3.13; macOS: brew install python@3.13)" >&2
exit 1
