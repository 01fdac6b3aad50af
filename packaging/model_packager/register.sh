#!/bin/sh
# The startup step of a model component: register the model with Edge Agent, and end well once the agent knows it.
#
#   sh register.sh COMPONENT VERSION ZIP ARTIFACTS UNARCHIVED ROOT
#
# ARTIFACTS holds the model's ZIP and UNARCHIVED what Greengrass unpacked of it, if it did; ROOT is Greengrass's own
# folder. Two variables are set by the component's configuration: EDGE_AGENT_REGISTRY is the folder to register in, the
# agent's usual one where it is empty, and EDGE_AGENT_AUTOSTART is "true" where the model is to be started.
#
# The entry COMPONENT.json goes into the registry; the agent answers with COMPONENT.ack, a copy of the entry or
# "error: " and a reason. Nothing stays running that could be killed. How long it may take, the nucleus limits.
#
# It runs in any POSIX shell, with the programs that the smallest systems have, too: chmod, mv, rm, sed, sleep and tr; and
# systemd-notify where systemd waits for it. Signals are not handled: who ends it early must see that it did not end well.

set -u
umask 022
# Texts are bytes here.
LC_ALL=C
export LC_ALL

newline='
'

say() {
    printf '%s\n' "$1"
}

refuse() {
    printf '%s\n' "$1" >&2
    exit 1
}

# Say what is being waited for, unless that was said last.
waiting_for=''
await() {
    [ "$1" = "$waiting_for" ] || say "$1"
    waiting_for=$1
}

# Print $1 as it can stand in a log: without control characters.
shown() {
    printf '%s' "$1" | tr -d '\001-\037\177'
}

# Print a path without slashes at its end, but for the root's.
bare() {
    printf '%s\n' "$1" | sed 's:\(.\)/*$:\1:'
}

# Print $1 as it stands between the quotes of a text in JSON; control characters there are none.
quoted() {
    printf '%s\n' "$1" | sed 's/["\\]/\\&/g'
}

# Refuse the path $2 of what is called $1, unless it is absolute and can be written down.
check_path() {
    [ "$(shown "$2")" = "$2" ] || refuse "$1 is '$(shown "$2")' and has control characters, too; give it another path."
    case $2 in
        /*) ;;
        *) refuse "$1 is '$2'; it must be an absolute path." ;;
    esac
}

# Print the bytes of a file and a dot, without which a shell drops the newlines at the end. It drops every NUL, too.
content() {
    [ -f "$1" ] && { tr '\000' '?' <"$1"; } 2>/dev/null
    printf .
}

# Put the entry into the registry whole, with no answer beside it that was given to another; fail with the reason.
announce() {
    rm -f "$answer" "$fresh" || return
    if [ -d "$place" ]; then # into which mv would move it
        printf '%s\n' "$place is a folder"
        return 1
    fi
    # A new file, whatever lies there; and a default ACL of the folder comes before the umask.
    (set -C && printf '%s\n' "$entry" >"$fresh") && chmod 644 "$fresh" && mv -f "$fresh" "$place" && return
    rm -f "$fresh"
    return 1
}

component=$1 version=$2 zip=$3

case ${EDGE_AGENT_AUTOSTART:-} in
    [Tt][Rr][Uu][Ee]) autostart=true ;;
    [Ff][Aa][Ll][Ss][Ee] | '') autostart=false ;;
    *) refuse "The configuration key Autostart is '$(shown "$EDGE_AGENT_AUTOSTART")'; it must be \"true\" or \"false\"." ;;
esac

registry=${EDGE_AGENT_REGISTRY:-}
if [ -n "$registry" ]; then
    check_path "The configuration key Registry" "$registry"
else
    check_path "The folder of Greengrass" "$6"
    registry=$(bare "$6")/work/aws.iot.lookoutvision.EdgeAgent/models.d
fi

check_path "The folder of artifacts" "$4"
artifacts=$(bare "$4") unarchived=$(bare "$5") stem=${zip%.zip}
if [ -n "$5" ] && [ -f "$unarchived/$stem/manifest.json" ]; then
    path=$unarchived/$stem
    check_path "The package" "$path"
elif [ -f "$artifacts/$zip" ]; then
    path=$artifacts/$zip
else
    refuse "$component $version has neither $zip in $artifacts nor what is unpacked of it in $(shown "$unarchived"); deploy it again with its artifacts."
fi

registry=$(bare "$registry")
place=$registry/$component.json
answer=$registry/$component.ack
fresh=$registry/.$component.json.new
entry=$(printf '{"component": "%s", "version": "%s", "path": "%s", "autostart": "%s"}' \
    "$component" "$version" "$(quoted "$path")" "$autostart")

announced='' refused=''
while :; do
    if [ ! -d "$registry" ]; then
        announced=''
        await "Waiting for the folder $registry, which Edge Agent makes when it starts."
    elif [ -z "$announced" ] || [ "$(content "$place")" != "$entry$newline." ]; then
        # Gone again, as when the agent saw no package there: it is told anew.
        if why=$(announce 2>&1); then
            [ -n "$announced" ] || say "Registered $component $version at $path in $place; waiting for Edge Agent's answer."
            announced=yes refused='' waiting_for=''
        else
            await "$place cannot be written ($(shown "$why")); it is tried again each second. Let the agent and this component belong to one group."
        fi
    else
        said=$(content "$answer")
        [ "$said" != "$entry$newline." ] || break
        case $said in
            error:*)
                reason=${said#error:}
                reason=${reason%.}
                # The first may have been said of what was registered before.
                [ -z "$refused" ] || refuse "$(shown "${reason# }")"
                if why=$(rm -f "$answer" 2>&1); then
                    refused=yes
                else
                    await "$answer cannot be removed ($(shown "$why")); it is tried again each second."
                fi
                ;;
        esac
    fi
    sleep 1
done

say "Edge Agent knows $component $version."
[ -z "${NOTIFY_SOCKET:-}" ] || exec systemd-notify --ready
