#!/bin/sh
# The startup step of the agent component: become the agent, out of the environment that install.sh made.
#
#   sh run.sh ARTIFACTS WORK ROOT
#
# ARTIFACTS has the component's version as its name; ROOT is Greengrass's own folder. The settings are in the environment,
# as EDGE_AGENT_*; AGENT_SCAN_ARTIFACTS is "true" where all unpacked artifacts are searched for models.
set -eu
# What others may read gets its mode from the agent.
umask 027

refuse() {
    printf '%s\n' "$1" >&2
    exit 1
}

artifacts=$(cd "$1" && pwd) || refuse "There is no folder of artifacts $1; deploy the component again."
work=$(cd "$2" && pwd) || refuse "There is no work folder $2; deploy the component again."
root=$(cd "$3" && pwd) || refuse "There is no folder $3, which should be that of Greengrass."
venv=$work/venv-${artifacts##*/}/current

# A link, which leads nowhere when the Python that it was made with is gone.
[ -x "$venv/bin/python" ] ||
    refuse "There is no whole environment $venv, or its Python is gone; restart the nucleus, or deploy the component again."

export EDGE_AGENT_STATE_DIR="$work/state"
export EDGE_AGENT_REGISTRY="${EDGE_AGENT_REGISTRY:-$root/work/aws.iot.lookoutvision.EdgeAgent/models.d}"
export EDGE_AGENT_REGISTRY_ROOTS="${EDGE_AGENT_REGISTRY_ROOTS:-$root/packages}"

case ${AGENT_SCAN_ARTIFACTS:-} in
    [Tt][Rr][Uu][Ee]) export EDGE_AGENT_SCAN="$root/packages/artifacts-unarchived" ;;
    [Ff][Aa][Ll][Ss][Ee] | '') ;;
    *) refuse "The configuration key ScanArtifacts is '$AGENT_SCAN_ARTIFACTS'; it must be \"true\" or \"false\"." ;;
esac

# Artifacts belong to root on the Java nucleus, or to the components' user, and on nucleus lite to the nucleus's own user,
# whom nothing else tells us; whoever it is can give the agent any model already.
if owner=$(stat -c %u "$root/packages" 2>/dev/null); then
    export EDGE_AGENT_TRUSTED_UIDS="${EDGE_AGENT_TRUSTED_UIDS:+$EDGE_AGENT_TRUSTED_UIDS,}$owner"
fi

exec "$venv/bin/edge-agent" serve
