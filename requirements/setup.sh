#!/bin/sh
# Builds the virtual environment from a lock file: every package pinned and checked against its hash, nothing resolved.
# Does nothing if it is complete; otherwise starts from an empty one, since an interrupted installation may leave half a
# package. One built for GPUs stays so until it is deleted.
#
#   requirements/setup.sh [--gpu] [VENV]          (default: .venv)
#
# requirements/uv.sh says where packages come from.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
kind=cpu python=3.11
[ "${1:-}" = --gpu ] && kind=gpu && shift
venv=${1:-.venv}
stamp=$venv/installed
case $(cat "$stamp" 2>/dev/null) in gpu*) kind=gpu ;; esac
[ "$kind" = gpu ] && python=3.12
lock=$here/$kind.txt
uv=$here/uv.sh

fail() {
    echo "set-up: $*" >&2
    exit 1
}
wanted() {
    echo "$kind $(cat "$lock" "$here/../pyproject.toml" | sha256sum | cut -d" " -f1) $here"
}
complete() {
    [ "$(cat "$stamp" 2>/dev/null)" = "$(wanted)" ] && [ -x "$venv/bin/python" ]
}

complete && exit
[ "$(uname -sm)" = "Linux x86_64" ] ||
    fail "found $(uname -sm), expected Linux x86_64: the locked torch and vLLM have no wheels for other platforms." \
        "Use a Linux machine or container, or resolve your own locks with make lock"
[ ! -e "$venv" ] || [ -e "$venv/pyvenv.cfg" ] || rmdir "$venv" 2>/dev/null ||
    fail "$venv holds files and isn't a virtual environment: choose another folder (VENV=)"

mkdir -p "$(dirname "$venv")"
exec 9>"$venv.lock"
flock -n 9 || { echo "another set-up is working on $venv; waiting for it" && flock 9; }
complete && exit
rm -f "$stamp"

# uv looks for this Python on the PATH and among pyenv's; failing that, it fetches one.
"$uv" venv --quiet --clear --no-config --python "${PYTHON:-$python}" "$venv" ||
    fail "there is no environment for Python $python. If uv could not be installed: apt install python3-venv, or" \
        "install uv yourself. If Python is missing: apt install python$python, pyenv install $python, or name one:" \
        "make setup PYTHON=/path/to/python$python"
[ "$kind" = gpu ] || export CPU_TORCH=1
quiet=
[ -t 2 ] || quiet=--quiet
echo "$venv: $(grep -c "^[a-z]" "$lock") packages from $(basename "$lock")"
# An image is built from the lock alone, before there is any code to install.
"$uv" pip sync $quiet --no-config --python "$venv/bin/python" --require-hashes "$lock" &&
    { [ ! -d "$here/../flows" ] || "$uv" pip install --quiet --no-config --python "$venv/bin/python" --no-deps \
        --no-build-isolation -e "$here/.."; } ||
    fail "uv ended with an error, see above. It starts over from an empty environment next time"
wanted >"$stamp.new"
mv "$stamp.new" "$stamp"
