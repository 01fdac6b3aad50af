"""R1: whatever goes over the wire, the answer is a documented one, and nobody behind the socket is any worse for it.

1. An agent serves two models that run and one whose package is refused. Every RPC gets messages that are broken field by
   field (values at the bounds, wrong types, unknown fields, endless numbers, wrong UTF-8, a oneof set twice, names that a
   log or a terminal would act on), and bytes that are no message, by a channel that serializes nothing.
2. Each is answered with a code that api.md has for its RPC and its fault; never INTERNAL, since nothing of it is a
   failure of the agent's. Details are one printable line without a path, a process id or a traceback.
3. The agent has counted each call, by RPC and code, as the client has; the names it counts by are those of models.
4. Connections speak HTTP/2 that no client library would: frames out of order, cut off and scrambled, headers and messages
   that are malformed. What never reaches a handler is answered by gRPC itself, in ways that are none of api.md's:
   - UNIMPLEMENTED: no such method, or a call that ends before it has sent a whole message.
   - INTERNAL: headers that break gRPC's or HPACK's rules; a message that cannot be decompressed, or by no known means.
   - RESOURCE_EXHAUSTED: a message that says it is longer than the limit, or is so once it is decompressed; gRPC reads no
     more of it. So are headers above its limits, between the soft and the hard one by chance.
   - DEADLINE_EXCEEDED: the time that the caller gave had passed when the call came.
   - CANCELLED, UNAVAILABLE: streams and connections that gRPC has given up, told where there is still a stream to tell.
   Their details may repeat what that caller has sent, to nobody but that caller.
   - RST_STREAM or the end of the connection where HTTP/2 itself is broken, or was cut off.
5. The agent, the forkserver and the workers are the processes that they were; the models judge an image as before. Each
   line of the log is an event in printable text, and none is an error.
"""

import os
import re
import signal
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError, Message

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import METHODS, SERVICE
from edge_agent.server import LARGEST_MESSAGE
from promises.fuzzed_wire.frames import CLOSED, EVERY_ANSWER, Conversation, Conversations, hold
from promises.fuzzed_wire.messages import RPCS, SIZE, Fuzz
from support import packages
from support.agent import PLENTY, Agent, alive
from support.broken import LIGHT
from support.calls import EXHAUSTED, INVALID, NOT_FOUND, OK, PRECONDITION, outcome, request
from support.promises import Promise, Promises
from support.sabotage import sabotaged
from support.waiting import until

PROMISE = Promise(
    id="R1",
    text="whatever messages, bytes and HTTP/2 frames are sent: documented codes, printable details and log, the same "
    "processes; what never reaches a handler is answered by gRPC itself",
    case="a call that the agent counted, or a connection that it answered or closed",
    full=200_000,
    fast=1_500,
)
# Of the cases, how many are connections.
BY_HAND = 1 / 20
# Calls on their way at a time: fewer than may wait for a model, so that none is refused for that.
ON_THEIR_WAY = 48
CONNECTIONS = 16

RUNNING = ("board", "part")
REFUSED = "torn"
NAMES = (*RUNNING, REFUSED)
NAME = re.compile("[a-zA-Z0-9-_.]{1,128}")
NOBODY = "nobody"
# The codes that only a handler gives to a call of DescribeModel.
HANDLERS = {INVALID, NOT_FOUND}

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING) .+")
QUOTED = re.compile(r"""(?:^|(?<=[ (]))(['"])(?:\\.|(?!\1)[^\\])*\1""")


@pytest.fixture(scope="module")
def models(module_folder) -> Path:
    folder = module_folder / "models"
    packages.segmenter(folder / RUNNING[0], SIZE)
    packages.classifier(folder / RUNNING[1], SIZE)
    packages.classifier(folder / REFUSED, SIZE, threshold="none")
    return folder


def allowed(rpc: str, data: bytes) -> set[int]:
    """Return the codes that api.md has for a call of these models."""
    if rpc == "ListModels":
        return {OK}
    try:
        name = METHODS[rpc][0].FromString(data).model_component
    except DecodeError:
        return {INVALID}
    if not NAME.fullmatch(name):
        return {INVALID}
    if name not in NAMES:
        return {NOT_FOUND}
    if rpc == "DescribeModel":
        return {OK}
    if rpc == "DetectAnomalies" and name in RUNNING:
        return {OK, INVALID}
    if rpc == "StartModel" and name == REFUSED:
        return {OK, PRECONDITION}
    return {PRECONDITION}


def numbers(rpc: str, data: bytes) -> set[str]:
    """Return the numbers of a request that its refusal may tell."""
    try:
        message = METHODS[rpc][0].FromString(data)
    except DecodeError:
        return set()
    told = set(re.findall("[0-9]+", str(message)))
    if isinstance(message, pb2.DetectAnomaliesRequest):
        width, height = message.bitmap.width, message.bitmap.height
        row = 3 * width
        told |= {str(one) for one in (len(message.bitmap.byte_data), row * height, (row + -row % 4) * height)}
    return {*told, str(len(getattr(message, "model_component", "")))}


def check_details(details: str, pids: set[int], told: set[str] = frozenset()) -> None:
    """Fail unless details are one printable line that tells nothing of the agent's own.

    What stands in quotes is the caller's, and so are the numbers in `told`.
    """
    assert details, "there are no details"
    assert details.isprintable(), f"details are not one printable line: {details!r}"
    assert len(details) < 1000, f"details are a page: {details!r}"
    ours = QUOTED.sub("", details)
    assert not re.search(r"(?<!\w)/(?!dev/shm\b)[\w.]", ours), f"a path is told: {details!r}"
    assert not re.search(r"Traceback|\.py\b|line \d|0x[0-9a-f]{6}|Error\b|Exception", ours), (
        f"code is told: {details!r}"
    )
    found = set(re.findall("[0-9]+", ours)) - told
    assert not found & {str(pid) for pid in pids}, f"a process is told of: {details!r}"


def check_log(path: Path) -> int:
    """Return how many lines a log has; fail unless each is an event in printable text, and none tells of an error."""
    lines = 0
    with path.open("rb") as file:
        for line in file:
            try:
                text = line.decode().removesuffix("\n")
            except UnicodeDecodeError:
                raise AssertionError(f"the log has what is no text: {line[:500]!r}") from None
            assert text.isprintable(), f"the log has what a terminal acts on: {line[:500]!r}"
            assert LINE.fullmatch(text), f"the log has what is no event in order: {line[:500]!r}"
            lines += 1
    return lines


class Wire:
    """An agent, and what went over the wire to it: sent as it is, and judged by the answer."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        for name in RUNNING:
            agent.run_model(name)
        self.pids = self.processes()
        self.answers: Counter[tuple[str, int]] = Counter()
        self.connections: Counter[tuple[str, int]] = Counter()
        self.good = 0
        self.stub = agent.stub()
        self._before: Counter[tuple[str, int]] = Counter()
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(f"unix://{agent.socket}", options=options)
        self._calls = {rpc: self._channel.unary_unary(f"/{SERVICE}/{rpc}") for rpc in RPCS}
        self._on_their_way: deque[tuple[str, bytes, Any]] = deque()

    def close(self) -> None:
        self._channel.close()

    def processes(self) -> tuple[int, ...]:
        return (self.agent.pid, self.agent.forkserver(), *sorted(self.agent.workers()))

    def send(self, rpc: str, data: bytes) -> None:
        """Send bytes as the message of a call, and judge the answer of an earlier one."""
        if rpc == "StopModel" and allowed(rpc, data) == {PRECONDITION} and _name(rpc, data) in RUNNING:
            rpc = "DescribeModel"  # it would be obeyed
        self._on_their_way.append((rpc, data, self._calls[rpc].future(data, timeout=PLENTY)))
        if len(self._on_their_way) == ON_THEIR_WAY:
            self._judge(*self._on_their_way.popleft())

    def judged(self) -> None:
        """Judge the answers of all that is on its way."""
        while self._on_their_way:
            self._judge(*self._on_their_way.popleft())

    def _judge(self, rpc: str, data: bytes, call: Any) -> None:
        code = call.code().value[0]
        self.answers[rpc, code] += 1
        assert code in allowed(rpc, data), f"{rpc} with {data[:300]!r} gave {code}: {call.details()}"
        if code == OK:
            METHODS[rpc][1].FromString(call.result())
        else:
            check_details(call.details(), set(self.pids), numbers(rpc, data))
            assert call.details().endswith("."), f"{call.details()!r} is no sentence"

    def hold(self, conversation: Conversation) -> None:
        """Hold a conversation on a connection of its own, and judge what came back."""
        answer = hold(self.agent.socket, conversation)
        first = answer.outcome()
        self.connections[conversation.kind, first] += 1
        assert answer.closed, f"{conversation.kind}: the connection is still open"
        odd = {first, *answer.codes} - conversation.answers
        assert not odd, f"{conversation.kind} gave {odd}: {answer.details} to {conversation.sent[:300]!r}"
        for code, details in zip(answer.codes, answer.details, strict=True):
            if code in HANDLERS:
                check_details(details, set(self.pids))
            # What gRPC says itself may hold what that caller sent, as it came.
            assert "Traceback" not in details
            assert str(self.agent.folder) not in details

    def refuses_what_swells(self) -> None:
        """Fail unless a message is refused that is compressed to a thousandth, and longer than any may be."""
        call = self.stub.DetectAnomalies
        bomb = request(RUNNING[0], *SIZE, bytes(LARGEST_MESSAGE + 1))
        with pytest.raises(grpc.RpcError) as refused:
            call(bomb, timeout=PLENTY, compression=grpc.Compression.Gzip)
        assert refused.value.code().value[0] == EXHAUSTED
        check_details(refused.value.details(), set(self.pids))

    def counted(self) -> Counter[tuple[str, int]]:
        """Return how many calls the agent has answered of those that count, by RPC and code."""
        return self._counts() - self._before

    def _counts(self) -> Counter[tuple[str, int]]:
        counts: Counter[tuple[str, int]] = Counter()
        for one in self.agent.status()["calls"]:
            code = getattr(grpc.StatusCode, one["code"]).value[0]
            counts[one["rpc"], code] += one["count"]
        return counts

    def count_from_here(self) -> None:
        """Leave out of account the calls until now, none of which was a StopModel."""
        outcome(self.stub.StopModel, pb2.StopModelRequest(model_component=NOBODY))
        until(lambda: self.agent.calls(rpc="StopModel") == 1, "the call is counted")
        self._before = self._counts()

    def all_is_counted(self) -> None:
        """Fail unless the agent has counted the calls as we have."""
        self.judged()
        until(lambda: self.counted().total() >= self.answers.total(), "all calls are counted")
        assert self.counted() == self.answers

    def is_what_it_was(self) -> None:
        """Fail unless the processes are those that they were, the models judge, and the log is in order."""
        assert self.processes() == self.pids, "not the processes that there were"
        for name in RUNNING:
            assert outcome(self.stub.DetectAnomalies, request(name, *SIZE, LIGHT))[0] == OK
            self.good += 1
        models = {one["model"] for one in self.agent.status()["calls"]}
        assert models <= {"", *NAMES}, f"names of callers are kept: {models}"
        check_log(self.agent.log_path)


def _name(rpc: str, data: bytes) -> str:
    message: Message = METHODS[rpc][0].FromString(data)
    return message.model_component


@contextmanager
def wire(models: Path, **env: str) -> Iterator[Wire]:
    with closing(Agent(models, queue_limit=2 * ON_THEIR_WAY, max_calls=2 * ON_THEIR_WAY)) as agent:
        agent.start(**env)
        with closing(Wire(agent)) as made:
            yield made


def fuzz(random: Random, at: Wire, segment: str, calls: int) -> None:
    """Send messages of either kind, in turn."""
    messages = Fuzz(random, NAMES, segment)
    for index in range(calls):
        at.send(*(messages.raw() if index % 5 < 2 else messages.message()))


def talk(random: Random, at: Wire, connections: int) -> None:
    """Hold conversations, each kind at least once, some at a time."""
    good = pb2.DescribeModelRequest(model_component=RUNNING[0]).SerializeToString()
    made = Conversations(random, f"/{SERVICE}/DescribeModel", good)
    each = [made.of(kind) for kind in made.kinds]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for _ in pool.map(at.hold, each + [made.make() for _ in range(connections - len(each))]):
            pass


def test_documented_answers_to_whatever_is_sent(models, segment, promises: Promises):
    with promises.run(PROMISE) as run, wire(models) as at:
        at.count_from_here()
        by_hand = round(run.declared * BY_HAND)
        fuzz(run.random, at, segment(1 << 16, bytes(1 << 16)), run.declared - by_hand)
        at.all_is_counted()
        run.count(at.counted().total())
        at.is_what_it_was()

        talk(run.random, at, by_hand)
        run.count(at.connections.total())
        at.refuses_what_swells()
        at.is_what_it_was()
        assert at.agent.stop() == 0
        lines = check_log(at.agent.log_path)
        by_calls = at.counted().total() - at.answers.total() - at.good
        assert at.connections["good", OK] <= by_calls
        print(f"  calls by RPC and code: {dict(sorted(at.answers.items()))}")
        outcomes: Counter[int] = Counter()
        for (_, answer), count in at.connections.items():
            outcomes[answer] += count
        print(f"  connections by answer: {dict(sorted(outcomes.items()))}; {by_calls} calls by hand; {lines} log lines")
        # Each code that api.md has for such calls was among the answers.
        assert {code for _, code in at.answers} == {OK, INVALID, NOT_FOUND, PRECONDITION}


# What a caller must not be told, and what the checks say of it.
NOT_TO_BE_TOLD = {
    "two\nlines": "printable",
    "red \x1b[31m": "printable",
    "It is in /tmp/models/board.": "path",
    "Traceback (most recent call last)": "code",
    "KeyError: 'x'": "code",
    "worker.py stumbled": "code",
    "Process 4242 has ended.": "process",
    "": "no details",
    "a" * 1000: "page",
}


@pytest.mark.parametrize("details", NOT_TO_BE_TOLD)
def test_bad_details_are_noticed(details):
    with pytest.raises(AssertionError, match=NOT_TO_BE_TOLD[details]):
        check_details(details, {4242})
    check_details("bitmap.width is 4242; the segment '/etc/passwd 4242' is none, nor is /dev/shm.", {4242}, {"4242"})


EVENT = "2026-01-31T12:00:00.123Z INFO message"


@pytest.mark.parametrize(
    ("line", "noticed"),
    [
        (b"2026-01-31T12:00:00.123Z INFO \x1b[31m", "terminal acts on"),
        ("2026-01-31T12:00:00.123Z INFO \u202e".encode(), "terminal acts on"),
        (b"2026-01-31T12:00:00.123Z INFO \xff", "no text"),
        (b"2026-01-31T12:00:00.123Z ERROR it failed", "no event"),
        (b"a second line", "no event"),
        (b"", "no event"),
    ],
)
def test_a_log_that_is_not_in_order_is_noticed(tmp_path, line, noticed):
    log = tmp_path / "log"
    log.write_bytes(b"%s\n%s\n" % (EVENT.encode(), line))
    with pytest.raises(AssertionError, match=noticed):
        check_log(log)
    log.write_text(f"{EVENT}\n{EVENT}\n")
    assert check_log(log) == 2


IN_THE_AGENT = """
import sys
if "serve" in sys.orig_argv:
    from edge_agent import errors, models, service, log, metrics
"""
LETS_OUT = """
    guarded = service._boundary
    def boundary(rpc, call, request_class, *more):
        if rpc != "DetectAnomalies":
            return guarded(rpc, call, request_class, *more)
        return lambda received, context: call(request_class.FromString(received[0]), context)
    service._boundary = boundary
"""
RAW_IN_LOG = """
    service.shown = lambda text: text
    log.printable = lambda text: text
"""
RAW_IN_DETAILS = """
    models.shown = lambda text: text
"""
# What is broken -> the code that breaks it, and what is noticed.
CONTROLS = {
    "a handler lets its exceptions out": (LETS_OUT, "gave 2: "),
    "the log has names as they came": (RAW_IN_LOG, "the log has what"),
    "details have names as they came": (RAW_IN_DETAILS, "not one printable line"),
}


@pytest.mark.parametrize("broken", CONTROLS)
def test_what_a_caller_may_not_cause_is_noticed(models, segment, folder, broken):
    code, noticed = CONTROLS[broken]
    name = segment(1 << 16)

    def all_of_it(at: Wire) -> None:
        fuzz(Random(0), at, name, 300)
        at.judged()
        at.is_what_it_was()

    with (
        wire(models, **sabotaged(folder, IN_THE_AGENT + code)) as at,
        pytest.raises(AssertionError, match=noticed),
    ):
        all_of_it(at)


NOT_COUNTED = """
    called = metrics.Metrics.called
    metrics.Metrics.called = lambda self, rpc, model, code, *more: called(self, rpc, model, "OK", *more)
"""


def test_calls_that_are_counted_wrongly_are_noticed(models, segment, folder):
    with wire(models, **sabotaged(folder, IN_THE_AGENT + NOT_COUNTED)) as at:
        at.count_from_here()
        fuzz(Random(0), at, segment(1 << 16), 300)
        with pytest.raises(AssertionError, match="Counter"):
            at.all_is_counted()


def kill_a_worker(at: Wire) -> None:
    victim = at.agent.workers()[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: not alive(victim) and len(at.agent.workers()) == len(RUNNING), "another worker is there")


def test_what_comes_of_it_is_noticed(models):
    farewell = Conversation("a farewell", b"GET / HTTP/1.1\r\n\r\n", EVERY_ANSWER - {CLOSED})
    with wire(models) as at:
        with pytest.raises(AssertionError, match="a farewell gave"):
            at.hold(farewell)
        at.is_what_it_was()
        kill_a_worker(at)
        with pytest.raises(AssertionError, match="not the processes"):
            at.is_what_it_was()
