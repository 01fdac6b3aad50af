#!/bin/sh
# The install step of the agent component: make the virtual environment that run.sh starts the agent from.
#
#   sh install.sh ARTIFACTS WORK
#
# ARTIFACTS, whose name is the component's version, holds the wheels of the agent and of all that it needs; no network is
# used. Two variables are set by the component's configuration: AGENT_PYTHON is the Python to use, python3 where it is
# empty, and AGENT_VARIANT the extra with the runtime, cpu where it is empty.
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
for wheel in "$artifacts"/vision_edge_agent-*.whl; do
    [ -f "$wheel" ] || refuse "There is no wheel of the agent in $artifacts; deploy the component with its wheels."
done

# What the environment is made of; each wheel with its checksum and size.
made_of=$(
    "$python" -c 'import sys; print(sys.executable, sys.version)'
    printf '%s\n' "$variant"
    cd "$artifacts"
    cksum -- *.whl
)
name=$(printf '%s' "$made_of" | cksum | cut -d ' ' -f 1)
venv=$home/$name

if [ "$(cat "$venv/made-of" 2>/dev/null)" != "$made_of" ]; then
    # What an interrupted install left.
    rm -rf "$venv"
    mkdir -p "$home"
    "$python" -m venv "$venv" || refuse "The virtual environment $venv cannot be made; what is above says why."
    # Nothing of the device's own settings for pip counts.
    PIP_CONFIG_FILE=/dev/null "$venv/bin/python" -I -m pip --isolated install --quiet --disable-pip-version-check --no-cache-dir \
        --no-index --find-links "$artifacts" "vision-edge-agent[$variant,greengrass]" ||
        refuse "The agent cannot be installed from the wheels in $artifacts; what is above says why. They must be for $("$python" -V) on $(uname -m)."
    # The mark comes last, and when all else has reached the disk: after a power cut, an environment that has it is whole.
    sync
    printf '%s\n' "$made_of" >"$venv/made-of.new"
    sync
    mv "$venv/made-of.new" "$venv/made-of"
fi
[ "$(readlink "$home/current")" = "$name" ] || ln -sfn "$name" "$home/current"
tidy
