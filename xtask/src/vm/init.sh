#!/bin/sh
# The first process of a guest: mounts what a system mounts, does what /plan says, switches off.
#
# The console is the kernel's. What is done here is told on the second serial port, where the
# kernel writes nothing: a line that begins with "@@ " is for cargo xtask, all others are a
# program's. A guest that has not said "@@ done" has not come to its end.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
exec </dev/null >/dev/ttyS1 2>&1

# step NAME COMMAND…
step() {
    echo "@@ begin $1"
    name=$1
    shift
    "$@"
    # $? first: the next command has a status too.
    echo "@@ end $? $name"
    read -r up _ </proc/uptime
    echo "@@ up $up s"
}

echo "@@ kernel $(uname -r)"
. /plan
echo "@@ done"
poweroff -f
