"""The life of the agent's process: claim the socket, serve, drain, exit."""

import contextlib
import logging
import math
import os
import resource
import signal
import time
from collections.abc import Iterator
from importlib.metadata import version
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from edge_agent import bitmaps, log, malloc, readiness, state, watchdog
from edge_agent.accepted import AcceptedCalls
from edge_agent.config import Settings
from edge_agent.errors import AgentRefused
from edge_agent.exporter import Exporter
from edge_agent.exporter import address as loopback
from edge_agent.heartbeat import Heartbeat
from edge_agent.live import Live
from edge_agent.metrics import Metrics
from edge_agent.models import Models
from edge_agent.nucleus import Follower, Nucleus
from edge_agent.recent import Recent
from edge_agent.registry import Registry
from edge_agent.spawner import Spawner
from edge_agent.status import StatusFile
from edge_agent.threads import Pool
from edge_agent.trimming import Trimmer
from edge_agent.tuned import Tuned
from edge_agent.unix_socket import ServedSocket

if TYPE_CHECKING:
    import grpc

    from edge_agent.health import Health

logger = logging.getLogger(__name__)

CONTROL_THREADS = 16
CUT_OFF_PATIENCE = 0.5
# What calls get to end when all is gone that they could wait for, but a disk that does not answer.
STUCK_PATIENCE = 0.5
# Room for an RGBA frame of the largest size, so that its sender is told of the mistake and not of a limit.
LARGEST_MESSAGE = bitmaps.LARGEST_IMAGE // 3 * 4 + (1 << 20)
GRPC_OPTIONS = (
    ("grpc.max_receive_message_length", LARGEST_MESSAGE),
    ("grpc.max_send_message_length", -1),
    # Clients may ping as often as they like: one channel is kept for days.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 0),
    ("grpc.http2.max_ping_strikes", 0),
)
REFUSES_ROOT = (
    "The agent does not run as root: every caller of its socket may make it read and write shared memory. Start it as "
    "another user, or allow it with --allow-root, EDGE_AGENT_ALLOW_ROOT=1 or `allow_root: true` in the settings file."
)


def _raise_file_limit() -> None:
    """Allow as many open files as the system lets us: each connection of an idle client is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _keep_message_memory(*, all_sizes: bool) -> None:
    if not malloc.keep_messages(all_sizes=all_sizes) and all_sizes:
        logger.warning("message_memory: this system's C library cannot keep the memory of messages; it gives it back.")


def _tell_room_for_frames() -> None:
    """Log how many of the largest frames there is room for in /dev/shm, of which containers often have 64 MB only."""
    side, mib = bitmaps.LONGEST_SIDE, bitmaps.LARGEST_IMAGE >> 20
    try:
        fit = bitmaps.frames_that_fit()
    except OSError as error:
        logger.warning("/dev/shm cannot be used (%s): images and masks go inline only.", error.strerror)
        return
    logger.log(
        logging.INFO if fit else logging.WARNING,
        "/dev/shm has room for %s of the largest frames (%dx%d pixels, %d MiB each).%s",
        "any number" if math.isinf(fit) else fit,
        side,
        side,
        mib,
        "" if fit else " Make it larger if clients put such frames, or masks of them, into shared memory.",
    )


def leave() -> NoReturn:
    """End the process at once, with exit code 0, whatever its threads do."""
    logging.shutdown()
    os._exit(0)


class EndSignal:
    """SIGTERM or SIGINT, waited for; a second one ends the process at once."""

    def __init__(self) -> None:
        # A pipe and not a threading.Event: a handler that runs while the main thread is inside the event's lock would
        # wait for that very thread.
        self._told, self._tell = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._tell, False)
        self._came = False

    def listen(self) -> None:
        """Take the signals over, in the main thread; those that come before `wait` are kept."""
        # Written by C's handler: Python's own would run only when the read in `wait` is interrupted, and that it is not
        # when the signal comes just before it, or in another thread.
        signal.set_wakeup_fd(self._tell, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def wait(self) -> None:
        """Return when a signal has come."""
        os.read(self._told, 1)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._came:
            os._exit(128 + number)
        self._came = True


class Agent:
    """The daemon. `run` is its whole life."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ending = EndSignal()
        self._threads = settings.max_calls + CONTROL_THREADS
        self._pool: Pool | None = None
        self._version = version("vision-edge-agent")  # which reads the disk
        self._started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    def run(self) -> bool:
        """Serve until SIGTERM or SIGINT; raise AgentRefused when it cannot start.

        Returns whether calls are stuck for which the interpreter would wait for ever: then `leave` is to end the process.
        """
        settings = self._settings
        if os.geteuid() == 0 and not settings.allow_root:
            raise AgentRefused(REFUSES_ROOT)
        log.set_up(settings.log_as)
        self._ending.listen()
        folder = state.StateFolder(state.folder(settings.state_dir), settings.socket_path)
        served = ServedSocket(settings.socket_path, settings.socket_mode, settings.socket_group)
        folder.lock()
        _raise_file_limit()
        _keep_message_memory(all_sizes=settings.message_memory == "keep")
        try:
            served.claim()
            with contextlib.closing(self._exporter()) as exporter:
                registry = self._registry(folder)
                spawner = Spawner(folder.scratch(), settings.log_as)
                spawner.start()
                metrics = Metrics()
                tuned = Tuned(folder.tuned_file())
                models = Models(settings, spawner, folder.running_models(), metrics, registry, tuned)
                recent, heart = Recent(metrics.answered), Heartbeat()

                def look() -> dict[str, object]:
                    return {**self._status(models, metrics), "recent": recent.look(), "heartbeat": heart.told()}

                status = StatusFile(folder.status_file(), look, heart.beat)
                try:
                    self._serve(models, served, metrics, status, exporter)
                finally:
                    models.close()
                    status.close()
        finally:
            served.release()
            folder.release()
        stuck = self._pool is not None and not self._pool.end(STUCK_PATIENCE)
        if stuck:
            logger.warning("Calls are stuck, as on a disk that does not answer; the agent ends without them.")
        logger.info("Ended.")
        return stuck

    def _registry(self, folder: state.StateFolder) -> Registry | None:
        settings = self._settings
        if settings.registry is None:
            return None
        registry = Registry(
            settings.registry.absolute(),
            settings.socket_group,
            settings.allowed_roots,
            settings.trusted_uids,
            folder.unpacked(),
        )
        registry.make()
        return registry

    def _exporter(self) -> Exporter:
        settings = self._settings
        address = settings.metrics_address and loopback.parse(settings.metrics_address)
        return Exporter(address or None, settings.metrics_file)

    def _status(self, models: Models, metrics: Metrics) -> dict[str, object]:
        agent = {
            "pid": os.getpid(),
            "version": self._version,
            "started": self._started,
            "socket": str(self._settings.socket_path),
        }
        return {"agent": agent, "models": models.status(), **metrics.snapshot()}

    def _serve(
        self, models: Models, served: ServedSocket, metrics: Metrics, status: StatusFile, exporter: Exporter
    ) -> None:
        models.scan()  # before the socket is there: a model that is deployed is never NOT_FOUND
        accepted = AcceptedCalls(2 * self._threads)
        server, health = self._build(models, metrics, accepted)
        served.bind(server.add_insecure_port)
        server.start()
        status.keep()  # before anybody can know that there is an agent
        exporter.start(lambda: self._status(models, metrics))
        served.publish()
        _tell_room_for_frames()
        count = len(models.all())
        logger.info("Serving %d model%s on unix://%s", count, "s" * (count != 1), self._settings.socket_path)
        if not (self._settings.models or self._settings.registry or self._settings.scan):
            logger.info("There will be no models, since no folder for them is set: name one with --models.")
        models.start_wanted()
        models.watch()
        readiness.tell()
        with self._following(models):
            with watchdog.watched(self._settings.socket_path):
                self._ending.wait()
            readiness.tell_end()
        logger.info("Ending: accepted calls have %g s to finish.", self._settings.drain_timeout)
        models.fall_silent()
        served.release()
        health.end()
        # Not `server.stop` with its grace: gRPC closes a connection with its last call, and a client that is just writing
        # finds that out before it has read the answer.
        accepted.refuse()
        if not accepted.wait(self._settings.drain_timeout):
            # They get an answer, too: that their worker was ended.
            logger.warning("Some calls did not finish in time; their workers are ended.")
            models.close()
        give_up = time.monotonic() + CUT_OFF_PATIENCE
        accepted.wait(CUT_OFF_PATIENCE)
        served.wait_until_read(give_up)
        left = max(0.0, give_up - time.monotonic())
        try:
            server.stop(left).wait(left)
        except RuntimeError:  # no thread can be started, which gRPC does for any grace
            server.stop(None)

    @contextlib.contextmanager
    def _following(self, models: Models) -> Iterator[None]:
        """Let the component's configuration change what can change, for so long, where a nucleus started the agent."""
        nucleus = Nucleus.of_environment()
        if nucleus is None:
            yield
            return

        def adopt(settings: Settings) -> None:
            log.set_level(settings.log_level)
            models.adopt(settings)

        follower = Follower(nucleus, Live(self._settings, adopt).take)
        follower.start()
        try:
            yield
        finally:
            follower.close()

    def _build(self, models: Models, metrics: Metrics, accepted: AcceptedCalls) -> "tuple[grpc.Server, Health]":
        # What gRPC's core prints of malformed headers, past our log, anybody may cause as often as they like.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        import grpc

        from edge_agent import health, service

        # A waiting call holds a thread, so control calls get threads that detections can never take.
        self._pool = Pool(self._threads, "call")
        server = grpc.server(self._pool, options=GRPC_OPTIONS)
        calls = service.EdgeAgentService(models, accepted, self._settings.inline_mask_limit)
        healthy = health.Health(models)
        trimmer = Trimmer()
        if self._settings.message_memory == "return":
            trimmer.start()
        handlers = service.handlers(calls, metrics, accepted, trimmer)
        server.add_generic_rpc_handlers((handlers, health.handlers(healthy, trimmer)))
        return server, healthy
