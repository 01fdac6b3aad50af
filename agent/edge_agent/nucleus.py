"""The Greengrass nucleus that started the agent: its IPC, through the AWS IoT Device SDK, which is imported here alone.

Every call is best-effort and has a limit of time. Sources: Greengrass's UpdateState, GetConfiguration and
SubscribeToConfigurationUpdate, as both nuclei answer them.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

from edge_agent.errors import extra, printable

logger = logging.getLogger(__name__)

TOKEN = "SVCUID"  # noqa: S105  (the variable's name)
SOCKET = "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT"
# Of each step: to connect, and for an operation.
PATIENCE = 10.0
# Between two attempts to reach a nucleus, each time twice as long.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
# A deployment changes several keys one after the other; they are read together.
SETTLING = 0.1
# It is read anyway so often, since a nucleus may forget whom to tell: lite 2.3.0 does after an update of the component.
LONGEST_SILENCE = 300.0
LONGEST_REASON = 300
NOT_FOLLOWED = (
    "The component's configuration is not followed, and its changes take effect when the component starts again, since the "
    f"AWS IoT Device SDK cannot be imported (%s); {extra('greengrass')}."
)
LOST = (
    "The component's configuration cannot be followed (%s). It is tried again, less and less often, at least once a minute; "
    "changes made meanwhile are noticed then."
)


@dataclass(frozen=True)
class Nucleus:
    """A nucleus's socket, and the token by which it knows this component."""

    path: str
    token: str = field(repr=False)

    @classmethod
    def of_environment(cls) -> "Nucleus | None":
        """Return the nucleus that started this process, None where none did."""
        path, token = os.environ.get(SOCKET), os.environ.get(TOKEN)
        return cls(path, token) if path and token else None


class Link:
    """A connection of its own to a nucleus. Any thread may close it, which ends what waits for it."""

    def __init__(self, nucleus: Nucleus, patience: float) -> None:
        """Prepare a connection whose steps take at most `patience` seconds each; ImportError where there is no SDK."""
        from awscrt.io import ClientBootstrap, DefaultHostResolver, EventLoopGroup, SocketDomain, SocketOptions
        from awsiot.eventstreamrpc import Connection, MessageAmendment

        # Each attempt that fails is an error to the SDK's own loggers; to an operator all of them are one line of ours.
        logging.getLogger("awsiot").setLevel(logging.CRITICAL)
        self._patience = patience
        # The SDK's own `connect` leaves a connection open that is not answered, and its thread with it.
        loop = EventLoopGroup(num_threads=1)
        options = SocketOptions()
        options.domain = SocketDomain.Local
        self._connection = Connection(
            host_name=nucleus.path,
            port=0,
            bootstrap=ClientBootstrap(loop, DefaultHostResolver(loop)),
            socket_options=options,
            connect_message_amender=MessageAmendment.create_static_authtoken_amender(nucleus.token),
        )

    def open(self) -> None:
        """Connect, and be known by the token; `close` must follow, also when this fails."""
        from awsiot.eventstreamrpc import LifecycleHandler
        from awsiot.greengrasscoreipc.client import GreengrassCoreIPCClient

        self._connection.connect(LifecycleHandler()).result(self._patience)
        self._client = GreengrassCoreIPCClient(self._connection)

    def close(self) -> None:
        """End the connection, without waiting for that; it may be closed already."""
        self._connection.close()

    def say_running(self) -> None:
        """Report the state RUNNING. The errors are the SDK's, here and below."""
        from awsiot.greengrasscoreipc.model import ReportedLifecycleState, UpdateStateRequest

        self._answer(self._client.new_update_state(), UpdateStateRequest(state=ReportedLifecycleState.RUNNING))

    def configuration(self) -> dict[str, Any]:
        """Return the component's own configuration by key; ValueError when the answer has none."""
        from awsiot.greengrasscoreipc.model import GetConfigurationRequest

        # An empty path stands for all keys, on both nuclei.
        value = self._answer(self._client.new_get_configuration(), GetConfigurationRequest(key_path=[])).value
        if not isinstance(value, dict):
            raise ValueError("its answer has no configuration")  # noqa: TRY004  (it came from outside)
        return value

    def subscribe(self, events: "Events") -> None:
        """Have `events` told of each change of the component's configuration, and of the end of that."""
        from awsiot.greengrasscoreipc.model import SubscribeToConfigurationUpdateRequest

        request = SubscribeToConfigurationUpdateRequest(key_path=[])
        self._answer(self._client.new_subscribe_to_configuration_update(events), request)

    def _answer(self, operation: Any, request: object) -> Any:
        give_up = time.monotonic() + self._patience
        operation.activate(request).result(self._patience)
        return operation.get_response().result(max(0.0, give_up - time.monotonic()))


class Events:
    """What the SDK tells of a subscription, in a thread of its own: it is only noted, and `woken` set."""

    def __init__(self, woken: threading.Event) -> None:
        self._woken = woken
        self.ended = ""

    def on_stream_event(self, _: object) -> None:
        """Note a change. Which key it is, is not looked at: all are read, so that none can be missed."""
        self._woken.set()

    def on_stream_error(self, error: Exception) -> bool:
        """Note an event that makes no sense; the stream is to be closed."""
        self._end(why(error, 0))
        return True

    def on_stream_closed(self) -> None:
        """Note the end of the stream, or of the connection."""
        self._end("the connection ended")

    def _end(self, reason: str) -> None:
        self.ended = self.ended or reason
        self._woken.set()


def why(error: Exception, patience: float) -> str:
    """Return why a step failed that had so many seconds, as a part of a sentence, and let go of what the error holds."""
    if isinstance(error, futures.TimeoutError):
        return f"no answer within {patience:g} s"
    # The SDK keeps its error in the connection that the traceback's frames hold: a circle with a thread in it.
    error.__traceback__ = None
    told = getattr(error, "message", None) or " ".join(map(str, error.args))
    return printable(f"{type(error).__name__}: {told}"[:LONGEST_REASON]).rstrip(".: ")


class Follower:
    """Follows the component's configuration, in a thread of its own, for as long as the agent serves."""

    def __init__(self, nucleus: Nucleus, take: Callable[[Mapping[str, Any]], None]) -> None:
        """`take` is given the whole configuration: when the nucleus is reached, and after each change."""
        self._nucleus = nucleus
        self._take = take
        self._ended = threading.Event()
        self._woken = threading.Event()
        self._link: Link | None = None
        self._lost = False
        self._thread = threading.Thread(target=self._run, name="nucleus", daemon=True)

    def start(self) -> None:
        """Begin to follow it; returns at once."""
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads
            logger.warning(LOST, error)

    def close(self) -> None:
        """Follow it no more. Returns at once; the thread ends by itself, or with the process where the nucleus hangs."""
        self._ended.set()
        self._woken.set()
        if link := self._link:
            link.close()

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                reason = self._follow()
            except ImportError as error:
                logger.info(NOT_FOLLOWED, printable(str(error)))
                return
            except Exception as error:  # noqa: BLE001  (the SDK's errors share no base)
                reason = why(error, PATIENCE)
            self._link = None
            if self._ended.is_set():
                return
            self._tell_lost(reason)
            # One that comes and goes at once is not there again: neither lines nor attempts may become many.
            pause = FIRST_PAUSE if time.monotonic() - began > LONGEST_PAUSE else pause
            self._ended.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _follow(self) -> str:
        """Follow it over one connection; return how that ended."""
        self._link = link = Link(self._nucleus, PATIENCE)
        with contextlib.closing(link):
            link.open()
            events = Events(self._woken)
            self._woken.clear()
            # Before the first reading, so that no change falls between the two. Who refuses it is asked again later.
            refused = self._subscribe(link, events)
            self._give(link)
            if refused:
                return refused
            self._tell_found()
            while not events.ended and not self._ended.is_set():
                self._woken.wait(LONGEST_SILENCE)
                self._ended.wait(SETTLING)
                self._woken.clear()
                if not events.ended and not self._ended.is_set():
                    self._give(link)
            return events.ended

    def _subscribe(self, link: Link, events: Events) -> str:
        try:
            link.subscribe(events)
        except Exception as error:  # noqa: BLE001  (the SDK's errors share no base)
            return why(error, PATIENCE)
        return ""

    def _give(self, link: Link) -> None:
        configuration = link.configuration()
        try:
            self._take(configuration)
        except Exception:
            logger.exception("The component's configuration could not be taken over; the agent goes on as before.")

    def _tell_lost(self, reason: str) -> None:
        if not self._lost:
            logger.warning(LOST, reason)
        self._lost = True

    def _tell_found(self) -> None:
        again = " again" if self._lost else ""
        logger.info("The component's configuration is followed%s: what can change while the agent runs does.", again)
        self._lost = False
