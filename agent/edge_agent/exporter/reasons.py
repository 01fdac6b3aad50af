"""The codes and reasons that detections are counted under, by the errors themselves."""

from collections.abc import Iterator

from edge_agent.errors import NAMELESS, EdgeAgentError, InvalidArgument
from edge_agent.metrics import OK


def kinds(of: type[EdgeAgentError] = EdgeAgentError) -> Iterator[type[EdgeAgentError]]:
    """Yield every kind of error that a call can fail with, each before those that are more special."""
    yield of
    for one in of.__subclasses__():
        yield from kinds(one)


def _pairs(errors: Iterator[type[EdgeAgentError]]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({(one.code.name, one.reason) for one in errors}))


# Of a call that names a deployed model, and of one that names none: bytes that are no request name none either.
OF_A_MODEL = ((OK, ""), *_pairs(one for one in kinds() if one not in NAMELESS))
OF_NO_MODEL = _pairs(iter((*NAMELESS, InvalidArgument)))
