"""Readiness: whoever started the agent is told that it serves: systemd by a datagram, a Greengrass nucleus over its IPC.

On nucleus lite, which starts components by systemd, the environment asks for both.
Sources: sd_notify(3); Greengrass's UpdateState.
"""

import contextlib
import logging
import threading
import time

from edge_agent import notify
from edge_agent.errors import extra, shown
from edge_agent.nucleus import Link, Nucleus, why

logger = logging.getLogger(__name__)

NOTIFY_PATIENCE = 5.0
# Of the agent's end, which must not wait for anybody.
END_PATIENCE = 0.2
# Of each of the two steps of an attempt: to connect, and to tell. All attempts and the pauses between them take less than
# the component's start may.
NUCLEUS_PATIENCE = 10.0
# A nucleus that is started again is back within seconds.
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
FAILED = "The Greengrass nucleus could not be told that the agent is RUNNING (%s): %s."
NO_SDK = (
    "The Greengrass nucleus cannot be told that the agent is RUNNING, since the AWS IoT Device SDK cannot be imported (%s): %s; "
    f"{extra('greengrass')}."
)
CONSEQUENCE = "the Java nucleus lets the start of this component time out, and starts it again"


def tell() -> None:
    """Tell all whom the environment names that the agent serves.

    Returns without waiting for a nucleus, which is told by a thread. What fails is logged as a warning.
    """
    if address := notify.address():
        _tell_systemd(address)
    if nucleus := Nucleus.of_environment():
        try:
            threading.Thread(target=_tell_nucleus, args=(nucleus,), name="readiness", daemon=True).start()
        except RuntimeError as error:  # no more threads
            logger.warning(FAILED, error, CONSEQUENCE)


def tell_end() -> None:
    """Tell systemd that the agent ends, so that it is not waited for as one that serves."""
    with contextlib.suppress(OSError):
        if notify.is_one(address := notify.address()):
            notify.send(address, b"STOPPING=1", END_PATIENCE)


def _tell_systemd(address: str) -> None:
    if not notify.is_one(address):
        logger.warning(
            "NOTIFY_SOCKET is %s, which is neither an absolute path nor an abstract socket, so nobody there knows that the "
            "agent is ready.",
            shown(address),
        )
        return
    try:
        notify.send(address, b"READY=1", NOTIFY_PATIENCE)
    except OSError as error:
        logger.warning(
            "NOTIFY_SOCKET %s was not told that the agent is ready: %s. Who waits for it lets the start time out.",
            shown(address),
            error.strerror or error,
        )
    else:
        logger.info("Told NOTIFY_SOCKET that the agent is ready.")


def _tell_nucleus(nucleus: Nucleus) -> None:
    failed = ""
    for pause in (0.0, *PAUSES):
        time.sleep(pause)
        try:
            failed = _update_state(nucleus)
        except ImportError as error:
            logger.warning(NO_SDK, error, CONSEQUENCE)
            return
        if not failed:
            logger.info("Told the Greengrass nucleus that the agent is RUNNING.")
            return
        logger.debug("The Greengrass nucleus could not be told yet: %s", failed)
    logger.warning(FAILED, failed, CONSEQUENCE)


def _update_state(nucleus: Nucleus) -> str:
    """Say RUNNING; return why it failed, empty where it did not. Raises ImportError when there is no SDK."""
    try:
        with contextlib.closing(Link(nucleus, NUCLEUS_PATIENCE)) as link:
            link.open()
            link.say_running()
    except ImportError:
        raise
    except Exception as error:  # noqa: BLE001  (the SDK's errors share no base)
        return why(error, NUCLEUS_PATIENCE)
    return ""
