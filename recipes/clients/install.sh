#!/bin/sh
# The install step of a client component: make its virtual environment.
#
#   sh install.sh ARTIFACTS VENV REQUIREMENT...
#
# The requirements come from the wheels in ARTIFACTS, never from a network. ARTIFACTS has the component's version as its
# name, and VENV is called venv-VERSION. Where ARTIFACTS has a proto, its stubs are made, too. PYTHON is the Python to use.
#
# The Java nucleus runs this at each launch, so what is there already and was made of the same is kept.
set -eu
umask 022

refuse() {
    printf '%s\n' "$1" >&2
    exit 1
}

artifacts=$(cd "$1" && pwd) || refuse "There is no folder of artifacts $1; deploy the component again."
venv=$2
shift 2
python=${PYTHON:-python3}

"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    refuse "$python is no Python that can make a virtual environment; install one (on Debian python3 and python3-venv), or name another in the configuration key Python."
for wheel in "$artifacts"/*.whl; do
    [ -f "$wheel" ] || refuse "There is no wheel in $artifacts; make the component with make_artifacts.py."
done

# What the environment is made of; each file with its checksum and size.
made_of=$(
    "$python" -c 'import sys; print(sys.executable, sys.version)'
    printf '%s\n' "$@"
    cd "$artifacts"
    for file in *.whl *.proto; do
        if [ -f "$file" ]; then cksum -- "$file"; fi
    done
)

if [ ! -x "$venv/bin/python" ] || [ "$(cat "$venv/made-of" 2>/dev/null)" != "$made_of" ]; then
    # What an interrupted install left, or other wheels made.
    rm -rf "$venv"
    "$python" -m venv "$venv" || refuse "The virtual environment $venv cannot be made; what is above says why."
    # Nothing of the device's own settings for pip counts.
    PIP_CONFIG_FILE=/dev/null "$venv/bin/python" -I -m pip --isolated install --quiet --disable-pip-version-check \
        --no-cache-dir --no-index --find-links "$artifacts" "$@" ||
        refuse "$* cannot be installed from the wheels in $artifacts, which must be for $("$python" -V) on $(uname -m)."
    cd "$artifacts"
    for proto in *.proto; do
        if [ -f "$proto" ]; then
            stubs=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
            "$venv/bin/python" -m grpc_tools.protoc \
                --proto_path=. --python_out="$stubs" --grpc_python_out="$stubs" "$proto" ||
                refuse "The stubs of $proto cannot be made; what is above says why."
        fi
    done
    # The mark comes last, when all else is on the disk: after a power cut, an environment that has it is whole.
    printf '%s\n' "$made_of" >"$venv/made-of.new"
    sync
    mv "$venv/made-of.new" "$venv/made-of"
fi

# The version before this one may still be running, and a deployment that fails goes back to it. The nuclei remove a
# version's artifacts only after that, and with them its environment is needed no more.
for old in "$(dirname "$venv")"/venv-*; do
    version=${old##*/venv-}
    if [ "$version" != "${venv##*/venv-}" ] && [ ! -d "$(dirname "$artifacts")/$version" ]; then
        rm -rf "$old"
    fi
done
