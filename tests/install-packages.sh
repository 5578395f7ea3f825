#!/bin/sh
# Installs the Debian packages that the tests need, without starting any of their services. Not as root: says so.
set -eu
cd "$(dirname "$0")"
wanted=$(cat packages.txt */packages.txt 2> /dev/null | sed 's/#.*//' | tr -s ' \n' ' ')
missing=
for package in $wanted; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null | grep -qx installed || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    echo "not root, or no apt: tests that need these Debian packages will be skipped:$missing" >&2
    exit 0
fi
# the packages' services must not start on the machine that runs the tests
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' > $policy
    chmod 755 $policy
    trap 'rm -f $policy' EXIT
fi
apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing > /dev/null
