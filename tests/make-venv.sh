#!/bin/sh
# make-venv.sh PYTHON DIR: a virtual environment; as root it installs what Debian splits off from Python for it.
set -eu
python=$1 dir=$2
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Ullage needs Python 3.11 or newer; $python is $("$python" --version)" >&2
    exit 1
}
if ! "$python" -c 'import ensurepip' 2> /dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
        echo "this Python has no venv module: install it (Debian: apt-get install python3-venv)" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv
fi
exec "$python" -m venv "$dir"
