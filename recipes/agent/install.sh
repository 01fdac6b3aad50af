#!/bin/sh
# The install step of the agent component: make the virtual environment that run.sh starts the agent from.
#
#   sh install.sh ARTIFACTS WORK
#
# ARTIFACTS, whose name is the component's version, holds the wheels of the agent and of all that it needs, as files or in
# a zip for each processor, and wheels.lock with their digests; no network is used. Two variables are set by the
# component's configuration: AGENT_PYTHON is the Python to use, python3 where it is empty, and AGENT_VARIANT the runtime,
# cpu where it is empty, which must be the one that the component was made with.
#
# The environment is WORK/venv-VERSION/current, a link to one that is whole. The Java nucleus runs this at each launch, so
# what is there already and was made of the same is kept.
set -eu
umask 022

refuse() {
    printf '%s\n' "$1" >&2
    exit 1
}

# Tell whether a process runs from the folder $1: one that does has libraries of it in its memory.
in_use() {
    grep -qsF "$1/" /proc/[0-9]*/maps
}

# Remove what can never be needed again. On nucleus lite this step runs while the old version still serves, and a
# deployment that fails goes back to it, without this step perhaps; the nuclei remove a version's artifacts only after
# that, so its environment stays for as long as they do. Whatever is the case, none is removed that a process runs from.
tidy() {
    for old in "$home"/*/; do
        old=${old%/}
        case ${old##*/} in
            current | "$name") ;;
            *) in_use "$old" || rm -rf "$old" ;;
        esac
    done
    for old in "$work"/venv-*/; do
        old=${old%/}
        if [ ! -d "${artifacts%/*}/${old##*/venv-}" ] && [ -d "$artifacts" ]; then
            in_use "$old" || rm -rf "$old"
        fi
    done
}

artifacts=$(cd "$1" && pwd) || refuse "There is no folder of artifacts $1; deploy the component again."
work=$(cd "$2" && pwd) || refuse "There is no work folder $2; deploy the component again."
python=${AGENT_PYTHON:-python3}
variant=${AGENT_VARIANT:-cpu}
home=$work/venv-${artifacts##*/}
lock=$artifacts/wheels.lock
archive=$artifacts/wheels-$(uname -m).zip

case $variant in
    cpu | cuda) ;;
    *) refuse "The configuration key Variant is '$variant'; it must be cpu or cuda." ;;
esac
command -v "$python" >/dev/null ||
    refuse "There is no program $python, which the configuration key Python names; install Python 3.10 to 3.13, or name one that is there."
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' ||
    refuse "$python is $("$python" -V 2>&1), and the agent needs Python 3.10 to 3.13; install one, and name it in the configuration key Python."
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    refuse "$python cannot make virtual environments, since it has no modules venv and ensurepip; install them, on Debian with apt install python3-venv."
[ -f "$lock" ] ||
    refuse "There is no wheels.lock in $artifacts; make the component with edge-agent component build, and deploy it."
grep -q "^vision-edge-agent\[$variant," "$lock" ||
    refuse "The configuration key Variant is '$variant', and the component was made for another; make it with --variant $variant."

# What the environment is made of; the lock has the digest of each wheel.
made_of=$(
    "$python" -c 'import sys; print(sys.executable, sys.version)'
    printf '%s\n' "$variant"
    cksum <"$lock"
)
name=$(printf '%s' "$made_of" | cksum | cut -d ' ' -f 1)
venv=$home/$name

if [ "$(cat "$venv/made-of" 2>/dev/null)" != "$made_of" ]; then
    # What an interrupted install left.
    rm -rf "$venv"
    mkdir -p "$home"
    "$python" -m venv "$venv" || refuse "The virtual environment $venv cannot be made; what is above says why."
    wheels=$artifacts
    if [ -f "$archive" ]; then
        wheels=$venv/wheels
        "$python" -m zipfile -e "$archive" "$wheels" || refuse "$archive cannot be unpacked; what is above says why."
    fi
    # Nothing of the device's own settings for pip counts.
    PIP_CONFIG_FILE=/dev/null "$venv/bin/python" -I -m pip --isolated install --quiet --disable-pip-version-check --no-cache-dir \
        --no-index --find-links "$wheels" --require-hashes --requirement "$lock" ||
        refuse "The agent cannot be installed from the wheels in $artifacts; what is above says why. They must be for $("$python" -V) on $(uname -m)."
    [ "$wheels" = "$artifacts" ] || rm -r "$wheels"
    # The mark comes last, and when all else has reached the disk: after a power cut, an environment that has it is whole.
    sync
    printf '%s\n' "$made_of" >"$venv/made-of.new"
    sync
    mv "$venv/made-of.new" "$venv/made-of"
fi
[ "$(readlink "$home/current")" = "$name" ] || ln -sfn "$name" "$home/current"
tidy
