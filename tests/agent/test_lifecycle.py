"""The table of moves, against the contract's own list."""

import pytest

from edge_agent import lifecycle
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent.errors import WrongState
from edge_agent.lifecycle import IllegalMove, State

LEGAL = {
    ("STOPPED", "STARTING"),
    ("FAILED", "STARTING"),
    ("STARTING", "RUNNING"),
    ("STARTING", "FAILED"),
    ("RUNNING", "STOPPING"),
    ("RUNNING", "FAILED"),
    ("STOPPING", "STOPPED"),
}


@pytest.mark.parametrize("current", State)
@pytest.mark.parametrize("target", State)
def test_moves(current, target):
    if (current.name, target.name) in LEGAL:
        assert lifecycle.move(current, target) is target
    else:
        with pytest.raises(IllegalMove):
            lifecycle.move(current, target)


def test_numbers_are_those_of_the_wire():
    assert {state.name: int(state) for state in State} == dict(pb2.ModelStatus.items())


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize(
    ("call", "allowed"),
    [("StartModel", {"STOPPED", "FAILED"}), ("StopModel", {"RUNNING"}), ("DetectAnomalies", {"RUNNING"})],
)
def test_calls(state, call, allowed):
    if state.name in allowed:
        lifecycle.require(state, call)
    else:
        with pytest.raises(WrongState, match=f"The model is {state.name}; {call} needs "):
            lifecycle.require(state, call)
