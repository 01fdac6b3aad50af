"""The states of a model and the legal moves between them: a pure table, no I/O."""

from enum import IntEnum

from edge_agent.errors import WrongState


class State(IntEnum):
    """A model's state; the numbers are those of `ModelStatus` on the wire."""

    STOPPED = 0
    STARTING = 1
    RUNNING = 2
    FAILED = 3
    STOPPING = 4


MOVES: dict[State, frozenset[State]] = {
    State.STOPPED: frozenset({State.STARTING}),
    State.FAILED: frozenset({State.STARTING}),
    State.STARTING: frozenset({State.RUNNING, State.FAILED}),
    State.RUNNING: frozenset({State.STOPPING, State.FAILED}),
    State.STOPPING: frozenset({State.STOPPED}),
}

# Call -> the states it is allowed from.
ALLOWED: dict[str, tuple[State, ...]] = {
    "DetectAnomalies": (State.RUNNING,),
    "StartModel": (State.STOPPED, State.FAILED),
    "StopModel": (State.RUNNING,),
}


class IllegalMove(Exception):
    """A move outside the table was tried: a defect of the agent, never of a caller."""


def move(current: State, target: State) -> State:
    """Return `target`; raise IllegalMove unless the table allows the move."""
    if target not in MOVES[current]:
        raise IllegalMove(f"{current.name} -> {target.name}")
    return target


def require(state: State, call: str) -> None:
    """Raise WrongState unless `call` is allowed in `state`."""
    allowed = ALLOWED[call]
    if state not in allowed:
        raise WrongState(state.name, call, " or ".join(one.name for one in allowed))
