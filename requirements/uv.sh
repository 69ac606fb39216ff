#!/bin/sh
# Runs uv: the one on the PATH or, if there is none, a pinned one from PyPI in the checkout's .uv. uv doesn't read pip's
# settings, so index-url, find-links and no-index are passed on, from the environment (PIP_INDEX_URL, …) or from pip's
# files; PIP_NO_INDEX=1 PIP_FIND_LINKS=<folder of wheels> works offline. More indices are given to uv itself (UV_INDEX).
# With CPU_TORCH=1 torch comes from the find-links folder or, if there is none, from PyTorch's index of CPU builds.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
files=$(python3 -m pip config list 2>/dev/null || true)
setting() { # one of pip's settings: words, separated by commas
    eval "given=\${PIP_$(echo "$1" | tr a-z- A-Z_):-}"
    [ -n "$given" ] || given=$(printf '%s\n' "$files" | sed -n "s/^\(global\|install\)\.$1='\(.*\)'$/\2/p" | sed 's/\\n/ /g')
    echo $given | tr ' ' ,
}

if ! uv=$(command -v uv); then
    uv=$here/../.uv/bin/uv
    if ! [ -x "$uv" ]; then
        echo "uv: from PyPI, into .uv" >&2
        python3 -m venv --clear "$here/../.uv"
        "$here/../.uv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$here/uv.txt"
    fi
fi

index=${UV_DEFAULT_INDEX:-$(setting index-url)} folders=${UV_FIND_LINKS:-$(setting find-links)}
[ -z "$index" ] || export UV_DEFAULT_INDEX="$index"
[ -z "$folders" ] || export UV_FIND_LINKS="$folders"
case "$1 $(setting no-index)" in "pip 1" | "pip true" | "pip yes") set -- "$@" --no-index ;; esac
[ -z "${CPU_TORCH:-}" ] || [ -n "$folders" ] || export UV_TORCH_BACKEND=cpu
exec "$uv" "$@"
