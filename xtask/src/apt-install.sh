# Installs the packages named as arguments, as root, asking nothing and removing nothing.
set -eu
export DEBIAN_FRONTEND=noninteractive

# A package that brings a service must not start it: Debian asks this file first.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

apt-get install -q -y --no-install-recommends --no-remove \
    -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"

# Nor start it at the next boot. A service that was there before is not in our arguments.
for package in "$@"; do
    case $package in
        haproxy | nginx | prometheus) service=$package ;;
        openssh-server) service=ssh ;;
        *) continue ;;
    esac
    systemctl disable "$service" >/dev/null 2>&1 || update-rc.d "$service" disable >/dev/null 2>&1 || true
done
