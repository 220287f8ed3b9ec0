#!/bin/sh
# Deploys to servers one by one, without cutting a connection: see --help.
set -eu

usage() {
    cat <<'END'
usage: rolling-deploy.sh [OPTION]... SERVER... -- COMMAND...

For each SERVER, one after the other:

  1. sluice backend drain --all-services SERVER --wait
  2. COMMAND, with each {} in it replaced by SERVER
  3. sluice backend enable --all-services SERVER
  4. wait until it takes new flows in every service, and is not known to be ill
     (a backup, or a weight of 0, need not take any)

A SERVER is the name that a backend has in Sluice; run this on the balancer, as root. If a step
fails, it stops: the server stays drained, and what is left to do is said.

options:
  --deadline TIME   reset connections that are left after this, as 30s or 5m
                    (default: each service's drain_deadline)
  --allow-cuts      go on if the deadline cut connections (default: stop)
  --healthy-in N    seconds that a server may take to be well again (default: 60)
  --instance NAME   Sluice's instance (default: default)
  --help            this

examples:
  rolling-deploy.sh web-1 web-2 web-3 -- ssh {} systemctl restart app
  rolling-deploy.sh --deadline 2m web-1 web-2 -- ansible-playbook -l {} deploy.yml

exit codes: 0 all done, 1 stopped, 2 wrong usage
END
}

wrong() {
    echo "rolling-deploy: $1 (--help tells more)" >&2
    exit 2
}

deadline=
allow_cuts=no
healthy_in=60
servers=
while [ $# -gt 0 ]; do
    case $1 in
    --help)
        usage
        exit 0
        ;;
    --allow-cuts) allow_cuts=yes ;;
    --deadline | --healthy-in | --instance)
        [ $# -gt 1 ] || wrong "$1 needs a value"
        case $1 in
        --deadline) deadline=$2 ;;
        --healthy-in) healthy_in=$2 ;;
        --instance) export SLUICE_INSTANCE="$2" ;;
        esac
        shift
        ;;
    --)
        shift
        break
        ;;
    -*) wrong "unknown option $1" ;;
    # Sluice's names have no blanks in them.
    *) servers="$servers $1" ;;
    esac
    shift
done
[ -n "$servers" ] || wrong "no SERVER"
[ $# -gt 0 ] || wrong "no COMMAND after --"
case $healthy_in in '' | *[!0-9]*) wrong "--healthy-in wants seconds, not $healthy_in" ;; esac
SLUICE=${SLUICE_BIN:-sluice}
for tool in "$SLUICE" jq; do
    command -v "$tool" >/dev/null || wrong "$tool is not installed"
done

# Says what failed, how the server was left, and what has not been done.
stop() {
    echo "rolling-deploy: $server: $1" >&2
    echo "rolling-deploy: stopped; $2" >&2
    echo "rolling-deploy: still to do:$left" >&2
    exit 1
}

# Whether the server takes new flows in every service that has it, and none knows it to be ill.
# Before its first check a backend's health is "unknown".
is_well() {
    # shellcheck disable=SC2016 # $name is jq's
    "$SLUICE" status --json | jq --exit-status --arg name "$server" '
        [.services[].backends[] | select(.name == $name and (.leaving | not))]
        | length > 0 and all(.[];
            (.takes_new_flows or .backup or .weight == 0)
            and .health != "unhealthy" and .health != "unreachable")
    ' >/dev/null
}

# Runs the command with {} replaced.
deploy() {
    count=$#
    while [ "$count" -gt 0 ]; do
        word=$1
        shift
        whole=
        while [ "${word#*\{\}}" != "$word" ]; do
            whole=$whole${word%%\{\}*}$server
            word=${word#*\{\}}
        done
        set -- "$@" "$whole$word"
        count=$((count - 1))
    done
    "$@" </dev/null
}

left=$servers
for server in $servers; do
    echo "rolling-deploy: $server: draining"
    code=0
    "$SLUICE" backend drain --all-services "$server" --wait ${deadline:+--deadline "$deadline"} ||
        code=$?
    if [ "$code" -eq 3 ] && [ "$allow_cuts" = no ]; then
        stop "the deadline cut connections" \
            "it is drained: give it longer, or say --allow-cuts; \
\`sluice backend enable --all-services $server\` takes it back"
    elif [ "$code" -ne 0 ] && [ "$code" -ne 3 ]; then
        stop "it could not be drained" \
            "look at \`sluice status\`; \`sluice backend enable --all-services $server\` takes it back"
    fi

    echo "rolling-deploy: $server: deploying"
    deploy "$@" || stop "the deploy failed" \
        "it stays drained: mend it, then \`sluice backend enable --all-services $server\`"

    "$SLUICE" backend enable --all-services "$server" ||
        stop "it could not be enabled" "it stays drained: look at \`sluice status\`"
    waited=0
    until is_well; do
        if [ "$waited" -ge "$healthy_in" ]; then
            "$SLUICE" backend drain --all-services "$server" || true
            stop "not well after $healthy_in s" \
                "it is drained again: look at it, then \`sluice backend enable --all-services $server\`"
        fi
        sleep 1
        waited=$((waited + 1))
    done
    left=${left#" $server"}
    echo "rolling-deploy: $server: done"
done
