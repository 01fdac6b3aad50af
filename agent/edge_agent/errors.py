"""Every way a call can fail; each class states its gRPC code once."""

import errno
from enum import IntEnum

SHOWN = 80


class Code(IntEnum):
    """The gRPC status codes of the API, by number, so that a worker need not import gRPC."""

    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    INTERNAL = 13


class EdgeAgentError(Exception):
    """A failure whose text is meant for the caller: readable English, no path, no traceback.

    `reason` is the word that it is counted under.
    """

    code = Code.INTERNAL
    reason = "agent"


class InvalidArgument(EdgeAgentError):
    """The caller sent something that can never work; the text names the argument and what to do."""

    code = Code.INVALID_ARGUMENT
    reason = "argument"


class InvalidName(InvalidArgument):
    """The caller sent what can be no model's name."""

    reason = "name"


class ModelNotFound(EdgeAgentError):
    """No model of that name is deployed on the device."""

    code = Code.NOT_FOUND
    reason = "name"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"No model component {shown(name)} is deployed on this device; ListModels names those that are."
        )


# What calls fail with that name no deployed model.
NAMELESS = (InvalidName, ModelNotFound)


class WrongState(EdgeAgentError):
    """The model's state does not allow the call."""

    code = Code.FAILED_PRECONDITION
    reason = "state"

    def __init__(self, state: str, call: str, needed: str) -> None:
        super().__init__(f"The model is {state}; {call} needs {needed}.")


class CannotKeepUp(EdgeAgentError):
    """The calls come faster than they can be answered; the text names the limit that was reached."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "rejected"


class Expired(CannotKeepUp):
    """The call's deadline passed, or its caller went away, while it waited."""

    reason = "expired"


class NotEnoughMemory(EdgeAgentError):
    """There is no memory to load the model, or none left in /dev/shm for a mask."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "memory"


class InferenceFailed(EdgeAgentError):
    """The model or its worker failed on an image that was in order; `cause` is for operators, not for callers."""

    reason = "model"

    def __init__(self, text: str, cause: str = "") -> None:
        super().__init__(text)
        self.cause = cause


class WorkerCrashed(InferenceFailed):
    """The model's worker process died under the call."""

    reason = "crashed"


class InferenceHung(InferenceFailed):
    """The model did not answer within its limit, and was ended."""

    reason = "hung"


class PackageRefused(Exception):
    """A model package is not what it has to be; the text is shown to operators as `status_message`."""


class AcceleratorMissing(PackageRefused):
    """A model cannot be run on the accelerator that it is to run on; on another it might be."""


class AcceleratorFailed(Exception):
    """A GPU or its runtime failed (no memory left, a CUDA error): its process must end, nothing is tried in it again.

    The text is for operators.
    """


class AgentRefused(Exception):
    """The agent cannot start as it was told to; the text says why and what to do."""


def no_more_files(error: BaseException) -> bool:
    """Return whether a call to the system failed because no more files can be opened, be it for connections alone."""
    return isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}


def extra(name: str) -> str:
    """Return what to do about a missing extra, as the end of a sentence; `name` may be several, as in "cpu,demo".

    Not `pip install vision-edge-agent[...]`: the distribution is in no index, where anybody could take its name.
    """
    return f"install the extra `{name}`, in a checkout with: pip install '.[{name}]'"


def printable(text: str) -> str:
    """Return a text as one line for people: what a terminal would act on, line breaks included, is escaped."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def shown(text: str) -> str:
    """Quote a caller's text for a message: printable ASCII, control characters escaped, never longer than a line."""
    if len(text) <= SHOWN:
        return ascii(text)
    return f"{text[:SHOWN]!a}... ({len(text)} characters)"
