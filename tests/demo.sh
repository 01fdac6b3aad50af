#!/bin/sh
# The main job in one go: an agent on a socket of its own, a model of the field, four photographs. Needs BIN and SHARED.
set -eu
photographs="$SHARED/data/cookies/training-images"
if [ ! -d "$SHARED/models" ]; then
    echo "The demo needs the shared models and photographs, and $SHARED has none: name their folder in EDGE_AGENT_SHARED." >&2
    exit 1
fi
place=$(mktemp -d)
export EDGE_AGENT_SOCKET="unix://$place/agent.sock"
# Containers and CI run as root, which the agent refuses unless it is told: this socket is private to the demo.
if [ "$(id -u)" = 0 ]; then
    echo "note: run by root, so the agent is started with --allow-root; on a device give it a user of its own"
    EDGE_AGENT_ALLOW_ROOT=1
    export EDGE_AGENT_ALLOW_ROOT
fi
"$BIN/edge-agent" serve --models "$SHARED/models" --state-dir "$place/state" --socket-group "" >"$place/log" 2>&1 &
agent=$!
trap 'kill $agent 2>/dev/null; wait $agent 2>/dev/null || true; rm -rf "$place"' EXIT
until [ -S "$place/agent.sock" ]; do
    kill -0 $agent 2>/dev/null || { cat "$place/log" >&2; exit 1; }
    sleep 0.1
done
"$BIN/edge-agent" start cookies-segmentation --wait
"$BIN/edge-agent" models
cd "$photographs"
"$BIN/edge-agent" detect --model cookies-segmentation --shm normal-1.jpg normal-2.jpg anomaly-1.jpg anomaly-2.jpg
