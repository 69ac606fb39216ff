#!/bin/sh
# Builds the virtual environment from a lock file with uv: every package pinned and checked against its hash, nothing
# resolved. Does nothing if the venv is complete; otherwise starts from an empty one, since an interrupted installation
# may leave half a package. A venv built for GPUs stays one until it is deleted.
#
#   requirements/setup.sh [--gpu] [VENV]          (default: .venv)
#
# uv doesn't read pip's settings, so they are passed on: PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, PIP_NO_INDEX
# or the same in pip's files. PIP_NO_INDEX=1 PIP_FIND_LINKS=<folder of wheels> installs offline. uv itself comes from the
# PATH or, if there is none, from PyPI. The CPU build of torch comes from a find-links folder or from PyTorch's index.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
kind=cpu python=3.11
[ "${1:-}" = --gpu ] && kind=gpu && shift
venv=${1:-.venv}
stamp=$venv/installed
case $(cat "$stamp" 2>/dev/null) in gpu*) kind=gpu ;; esac
[ "$kind" = gpu ] && python=3.12
lock=$here/$kind.txt

fail() {
    echo "set-up: $*" >&2
    exit 1
}
setting() { # one of pip's settings, from the environment or from pip's files
    eval "given=\${PIP_$(echo "$1" | tr a-z- A-Z_):-}"
    [ -n "$given" ] && echo "$given" || python3 -m pip config get "global.$1" 2>/dev/null || true
}
wanted() {
    echo "$kind $(cat "$lock" "$here/../pyproject.toml" | sha256sum | cut -d' ' -f1) $here"
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

if ! uv=$(command -v uv); then
    echo "uv: from PyPI"
    python3 -m venv --clear "$venv.uv" && "$venv.uv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --require-hashes -r "$here/uv.txt" ||
        fail "cannot install uv. If this Python lacks venv: apt install python3-venv. Or install uv yourself:" \
            "https://docs.astral.sh/uv"
    uv=$venv.uv/bin/uv
fi

set --
index=$(setting index-url) more=$(setting extra-index-url) folders=$(setting find-links)
[ -z "$index" ] || set -- "$@" --default-index "$index"
for url in $more; do set -- "$@" --index "$url"; done
for folder in $folders; do set -- "$@" --find-links "$folder"; done
case $(setting no-index) in 1 | true | yes) set -- "$@" --no-index ;; esac
[ "$kind" = gpu ] || [ -n "$folders" ] || set -- "$@" --torch-backend cpu

# uv looks for this Python on the PATH and among pyenv's; failing that, it fetches one.
"$uv" venv --quiet --clear --no-config --python "${PYTHON:-$python}" "$venv" ||
    fail "expected Python $python: install it (Debian: apt install python$python; pyenv install $python)," \
        "or name one: make setup PYTHON=/path/to/python$python"
"$uv" pip sync --no-config --python "$venv/bin/python" --require-hashes --strict "$@" "$lock" || fail "uv failed, see above"
"$uv" pip install --quiet --no-config --python "$venv/bin/python" --no-deps --no-build-isolation -e "$here/.." ||
    fail "uv failed, see above"
wanted >"$stamp.new" && mv "$stamp.new" "$stamp"
