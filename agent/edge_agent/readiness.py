"""Readiness: whoever started the agent is told that it serves: systemd by a datagram, a Greengrass nucleus over its IPC.

On nucleus lite, which starts components by systemd, the environment asks for both.
Sources: sd_notify(3); Greengrass's UpdateState.
"""

import logging
import os
import socket
import threading
import time
from concurrent import futures

from edge_agent.errors import extra, shown

logger = logging.getLogger(__name__)

NOTIFY_SOCKET = "NOTIFY_SOCKET"
TOKEN = "SVCUID"  # noqa: S105  (the variable's name)
NUCLEUS_SOCKET = "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT"
NOTIFY_PATIENCE = 5.0
# Of one attempt. All of them and the pauses between them take less than the component's start may.
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
    if address := os.environ.get(NOTIFY_SOCKET):
        _tell_systemd(address)
    path, token = os.environ.get(NUCLEUS_SOCKET), os.environ.get(TOKEN)
    if path and token:
        try:
            threading.Thread(target=_tell_nucleus, args=(path, token), name="readiness", daemon=True).start()
        except RuntimeError as error:  # no more threads
            logger.warning(FAILED, error, CONSEQUENCE)


def _tell_systemd(address: str) -> None:
    if not address.startswith(("/", "@")):
        logger.warning(
            "NOTIFY_SOCKET is %s, which is neither an absolute path nor an abstract socket, so nobody there knows that the "
            "agent is ready.",
            shown(address),
        )
        return
    name = os.fsencode(address)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(NOTIFY_PATIENCE)
            sender.sendto(b"READY=1", b"\0" + name[1:] if address.startswith("@") else name)
    except OSError as error:
        logger.warning(
            "NOTIFY_SOCKET %s was not told that the agent is ready: %s. Who waits for it lets the start time out.",
            shown(address),
            error.strerror or error,
        )
    else:
        logger.info("Told NOTIFY_SOCKET that the agent is ready.")


def _tell_nucleus(path: str, token: str) -> None:
    # Each attempt that fails is an error to the SDK's own loggers; to an operator all of them are one warning.
    logging.getLogger("awsiot").setLevel(logging.CRITICAL)
    failed = ""
    for pause in (0.0, *PAUSES):
        time.sleep(pause)
        try:
            failed = _update_state(path, token)
        except ImportError as error:
            logger.warning(NO_SDK, error, CONSEQUENCE)
            return
        if not failed:
            logger.info("Told the Greengrass nucleus that the agent is RUNNING.")
            return
        logger.debug("The Greengrass nucleus could not be told yet: %s", failed)
    logger.warning(FAILED, failed, CONSEQUENCE)


def _update_state(path: str, token: str) -> str:
    """Say RUNNING; return why it failed, empty where it did not. Raises ImportError when there is no SDK."""
    try:
        _say_running(path, token, time.monotonic() + NUCLEUS_PATIENCE)
    except ImportError:
        raise
    except futures.TimeoutError:
        return f"no answer within {NUCLEUS_PATIENCE:g} s"
    except Exception as error:  # noqa: BLE001  (the SDK's errors share no base)
        # The SDK keeps its error in the connection that the traceback's frames hold: a circle with a thread in it.
        error.__traceback__ = None
        told = getattr(error, "message", None) or " ".join(map(str, error.args))
        return f"{type(error).__name__}: {told}".rstrip(".: ")
    return ""


def _say_running(path: str, token: str, give_up: float) -> None:
    """Say it over a connection of its own, which is closed whatever comes of it."""
    from awscrt.io import ClientBootstrap, DefaultHostResolver, EventLoopGroup, SocketDomain, SocketOptions
    from awsiot.eventstreamrpc import Connection, LifecycleHandler, MessageAmendment
    from awsiot.greengrasscoreipc.client import GreengrassCoreIPCClient
    from awsiot.greengrasscoreipc.model import ReportedLifecycleState, UpdateStateRequest

    # The SDK's own `connect` leaves a connection open that is not answered, and its thread with it.
    loop = EventLoopGroup(num_threads=1)
    options = SocketOptions()
    options.domain = SocketDomain.Local
    connection = Connection(
        host_name=path,
        port=0,
        bootstrap=ClientBootstrap(loop, DefaultHostResolver(loop)),
        socket_options=options,
        connect_message_amender=MessageAmendment.create_static_authtoken_amender(token),
    )
    try:
        connection.connect(LifecycleHandler()).result(give_up - time.monotonic())
        operation = GreengrassCoreIPCClient(connection).new_update_state()
        request = UpdateStateRequest(state=ReportedLifecycleState.RUNNING)
        operation.activate(request).result(give_up - time.monotonic())
        operation.get_response().result(give_up - time.monotonic())
    finally:
        connection.close()
