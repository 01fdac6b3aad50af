"""The safeguards that are broken one at a time: what is replaced in the package, and the suites that should notice.

Run by mutations.py.
"""

from dataclasses import dataclass
from pathlib import Path

ACCEPTED = "tests/agent/test_accepted.py"
BITMAPS = "tests/agent/test_bitmaps.py"
BUDGET = "tests/agent/test_budget.py"
C1 = "tests/promises/crashes"
C2 = "tests/promises/hangs"
C3 = "tests/promises/agent_killed"
C4 = "tests/promises/wall_clock"
C5 = "tests/promises/broken_models"
CALLS = "tests/agent/test_calls.py"
CONFIG = "tests/agent/test_config.py"
IMAGES = "tests/contract/test_images.py::test_what_a_model_calls_its_parts_does_not_reach_the_log_as_it_is"
L1 = "tests/promises/lifecycle_storm"
L2 = "tests/promises/swaps"
LIFE = "tests/contract/test_life.py"
LOG = "tests/agent/test_log.py"
ORDER = "tests/contract/test_keeping_up.py::test_first_come_first_served"
PACKAGES = "tests/agent/test_packages.py::test_a_file_of_any_size_is_not_read"
UNREAD = "tests/contract/test_keeping_up.py::test_answers_that_nobody_reads_are_bounded"
R1 = "tests/promises/fuzzed_wire"
S1 = "tests/promises/torn_segments"
S2 = "tests/promises/not_segments"
S3 = "tests/promises/segment_names"
S4 = "tests/promises/boundaries"
S5 = "tests/promises/masks"
S6 = "tests/promises/leaks"
S7 = "tests/promises/changing_input"
S8 = "tests/promises/shm_full"
SERVING = "tests/agent/test_serving.py"
STATE = "tests/agent/test_parts.py::TestState"
STATUS = "tests/agent/test_status.py"
SUPERVISOR = "tests/agent/test_supervisor.py"
T1 = "tests/promises/sigterm"
T2 = "tests/promises/sigterm_midway"

DROPS_THE_QUEUE = """\
                self._queue.pause()
                self._worker = None
                for turn in list(self._queue._waiting):
                    turn.error = lambda: WorkerCrashed(_ended(cause))
                    turn.wake()
"""

BY_MAPPING = """\
            with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
                target[:] = memory[source.offset : source.offset + len(target)]
            count = len(target)
"""


class NotFound(Exception):
    """A text that a mutation replaces is not in its file exactly once."""


@dataclass(frozen=True)
class Mutation:
    """What is broken, the (file, text, other text) that breaks it, and the suites that should notice."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    suites: tuple[str, ...]

    def apply(self, package: Path) -> None:
        """Change a copy of the package."""
        for file, old, new in self.edits:
            path = package / file
            text = path.read_text()
            if text.count(old) != 1:
                raise NotFound(f"{self.name}: {file} has the text {text.count(old)} times, not once:\n{old}")
            path.write_text(text.replace(old, new))


MUTATIONS = (
    Mutation(
        "unread-answers-without-bound",
        (("accepted.py", "        if self._in_hand > self._most:\n", "        if False:\n"),),
        (ACCEPTED, UNREAD),
    ),
    Mutation(
        "files-of-any-size-are-read",
        (("packages.py", "        if most is not None and info.st_size > most:\n", "        if False:\n"),),
        (PACKAGES,),
    ),
    Mutation(
        "the-runtime-prints-what-fails",
        (("backends/onnxruntime.py", "FATAL_ONLY = 4\n", "FATAL_ONLY = 3\n"),),
        (IMAGES,),
    ),
    Mutation(
        "no-sentinel-watch",
        (
            (
                "worker.py",
                '    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()\n',
                "",
            ),
        ),
        (C3, LIFE),
    ),
    Mutation(
        "forkserver-obeys-sigterm",
        (("_preload.py", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n", ""),),
        (T1, LIFE),
    ),
    Mutation(
        "wall-clock-for-deaths",
        (("serving.py", "self._budget.died(time.monotonic())", "self._budget.died(time.time())"),),
        (C4,),
    ),
    Mutation(
        "wall-clock-for-deadlines",
        (
            ("calls.py", "max(0.0, deadline - time.monotonic())", "max(0.0, deadline - time.time())"),
            ("calls.py", "time.monotonic() >= deadline", "time.time() >= deadline"),
            ("service.py", "else time.monotonic() + remaining", "else time.time() + remaining"),
        ),
        (C4,),
    ),
    Mutation(
        "lock-for-queue",
        # The turn goes to any one of those who wait, as a lock gives it.
        (
            ("calls.py", "import logging\n", "import logging\nimport random\n"),
            (
                "calls.py",
                "            following = self._waiting.popleft()\n",
                "            following = random.choice(self._waiting)\n            self._waiting.remove(following)\n",
            ),
        ),
        (ORDER, CALLS, SERVING),
    ),
    Mutation(
        "queue-dropped-on-death",
        (
            (
                "serving.py",
                "                self._queue.pause()\n                self._worker = None\n",
                DROPS_THE_QUEUE,
            ),
        ),
        (C1, SERVING),
    ),
    Mutation(
        "state-file-in-place",
        (
            (
                "state.py",
                '            with open(beside, "w", opener=_private) as file:\n',
                '            with open(self._path, "w", opener=_private) as file:\n',
            ),
            ("state.py", "            beside.replace(self._path)\n", ""),
        ),
        (C3, STATE),
    ),
    Mutation(
        "status-file-in-place",
        (
            ("status.py", '        beside = self._path.with_suffix(".new")\n', "        beside = self._path\n"),
            ("status.py", "            beside.replace(self._path)\n", ""),
        ),
        (STATUS,),
    ),
    Mutation(
        "hangs-are-waited-for",
        (("supervisor.py", "        if not self._answers(TERMINATE_PATIENCE):\n", "        if False:\n"),),
        (C2,),
    ),
    Mutation(
        "no-budget-of-deaths",
        (("budget.py", "        if len(self._deaths) == MOST_DEATHS and ", "        if False and "),),
        (C5, BUDGET),
    ),
    Mutation(
        "memory-is-kept",
        (
            (
                "supervisor.py",
                "        for fd in (self._inbox, self._outbox, self._tell):\n",
                "        for fd in (self._tell,):\n",
            ),
        ),
        (L1,),
    ),
    Mutation(
        "any-move-goes",
        (("lifecycle.py", "    if state not in allowed:\n", "    if False:\n"),),
        (L1,),
    ),
    Mutation(
        "swap-in-the-middle-of-a-call",
        (
            (
                "serving.py",
                "            while not self._queue.wait_free(",
                "            while False and not self._queue.wait_free(",
            ),
        ),
        (L2, SERVING),
    ),
    Mutation(
        "failed-swap-ends-the-old",
        (
            (
                "serving.py",
                "            worker = self._starter.start(found)\n            self._queue.pause()\n",
                "            self._queue.pause()\n            worker = self._starter.start(found)\n",
            ),
        ),
        (L2, SERVING),
    ),
    Mutation(
        "only-the-old-is-started",
        (
            (
                "serving.py",
                "            if following is None or following.package is None:\n",
                "            if following is not self:\n",
            ),
        ),
        (L2, SERVING),
    ),
    Mutation(
        "no-drain",
        (("server.py", "accepted.wait(self._settings.drain_timeout)", "accepted.wait(0)"),),
        (T1, LIFE),
    ),
    Mutation(
        "end-waits-for-hung-workers",
        (("models.py", "        for model in self.all():\n            model.close()\n", ""),),
        (T2, LIFE),
    ),
    Mutation(
        "no-overlap-check",
        (
            (
                "bitmaps.py",
                "    if mask.offset < source.offset + source.size and source.offset < mask.offset + written:\n",
                "    if False:\n",
            ),
        ),
        (S5, BITMAPS),
    ),
    Mutation(
        "segments-are-mapped",
        (
            ("bitmaps.py", "import math\n", "import math\nimport mmap\n"),
            ("bitmaps.py", "            count = os.preadv(fd, [target[done:]], source.offset + done)\n", BY_MAPPING),
        ),
        (S1,),
    ),
    Mutation(
        "short-reads-are-taken",
        (
            (
                "bitmaps.py",
                "            if count == 0:  # the client shortened the segment after the check\n",
                "            if count == 0:\n                break\n            if count < 0:\n",
            ),
        ),
        (S1,),
    ),
    Mutation(
        "anything-is-a-segment",
        (("bitmaps.py", "    if not stat.S_ISREG(os.fstat(fd).st_mode):\n", "    if False:\n"),),
        (S2,),
    ),
    Mutation(
        "opens-wait",
        (("bitmaps.py", "OPEN_FLAGS = os.O_NONBLOCK | ", "OPEN_FLAGS = "),),
        (S2,),
    ),
    Mutation(
        "links-are-followed",
        (("bitmaps.py", " | os.O_NOFOLLOW | os.O_CLOEXEC\n", " | os.O_CLOEXEC\n"),),
        (S2,),
    ),
    Mutation(
        "names-with-slashes",
        (("bitmaps.py", ' or "/" in plain or "\\0" in plain or ', ' or "\\0" in plain or '),),
        (S3,),
    ),
    Mutation(
        "semaphores-are-segments",
        (("bitmaps.py", '    if plain.startswith("sem."):\n', "    if False:\n"),),
        (S2, S3),
    ),
    Mutation(
        "all-leading-slashes-go",
        (("bitmaps.py", '    plain = name.removeprefix("/")\n', '    plain = name.lstrip("/")\n'),),
        (S3,),
    ),
    Mutation(
        "padding-is-kept",
        (
            (
                "bitmaps.py",
                "            return Image(width, height, stride, segment)\n",
                "            return Image(width, height, packed, segment)\n",
            ),
        ),
        (S4,),
    ),
    Mutation(
        "no-bounds-check",
        (("bitmaps.py", "    if where.offset + needed > there:\n", "    if False:\n"),),
        (S4,),
    ),
    Mutation(
        "larger-sides",
        (("bitmaps.py", "LONGEST_SIDE = 4096\n", "LONGEST_SIDE = 4097\n"),),
        (S4,),
    ),
    Mutation(
        "overlap-by-name-only",
        (("bitmaps.py", "            mask.check_apart(source, opened)\n", "            pass\n"),),
        (S5, BITMAPS),
    ),
    Mutation(
        "mask-looked-at-once",
        (("bitmaps.py", "        self._check()\n        done = 0\n", "        done = 0\n"),),
        (S5, BITMAPS),
    ),
    Mutation(
        "mask-makes-its-segment",
        (
            (
                "bitmaps.py",
                "fd = os.open(SEGMENTS / name, access | OPEN_FLAGS)",
                "fd = os.open(SEGMENTS / name, access | OPEN_FLAGS | (os.O_CREAT if access == os.O_RDWR else 0), 0o600)",
            ),
        ),
        (S6,),
    ),
    Mutation(
        "refused-mask-stays-open",
        (
            (
                "bitmaps.py",
                "        except BaseException:\n            self.close()\n            raise\n",
                "        except BaseException:\n            raise\n",
            ),
        ),
        (S6, BITMAPS),
    ),
    Mutation(
        "image-read-twice",
        (
            (
                "worker.py",
                "            verdict, class_map = self.pipeline.judge(self._pixels(image, target))\n",
                (
                    "            verdict, _ = self.pipeline.judge(self._pixels(image, target))\n"
                    "            _, class_map = self.pipeline.judge(self._pixels(image, target))\n"
                ),
            ),
        ),
        (S7,),
    ),
    Mutation(
        "mask-is-mapped",
        (
            ("bitmaps.py", "import math\n", "import math\nimport mmap\n"),
            (
                "bitmaps.py",
                "                done += os.pwrite(self._fd, pixels[done:], self._mask.offset + done)\n",
                (
                    "                end = self._mask.offset + len(pixels)\n"
                    "                mmap.mmap(self._fd, end)[self._mask.offset : end] = bytes(pixels)\n"
                    "                done = len(pixels)\n"
                ),
            ),
        ),
        (S8,),
    ),
    Mutation(
        "frames-rounded-up",
        (
            (
                "bitmaps.py",
                "there.f_bavail * there.f_frsize // LARGEST_IMAGE if",
                "-(-there.f_bavail * there.f_frsize // LARGEST_IMAGE) if",
            ),
        ),
        (S8, BITMAPS),
    ),
    Mutation(
        "names-as-they-came-in-details",
        (("errors.py", "        return ascii(text)\n", "        return f\"'{text}'\"\n"),),
        (R1,),
    ),
    Mutation(
        "names-as-they-came-in-the-log",
        (
            (
                "service.py",
                "request_id, rpc, shown(name), milliseconds, outcome",
                "request_id, rpc, name, milliseconds, outcome",
            ),
            (
                "log.py",
                "{record.levelname} {printable(record.getMessage())}",
                "{record.levelname} {record.getMessage()}",
            ),
        ),
        (R1,),
    ),
    Mutation(
        "bytes-that-are-no-request-are-a-failure",
        (("service.py", "            except DecodeError:\n", "            except ZeroDivisionError:\n"),),
        (R1,),
    ),
    Mutation(
        "names-of-callers-are-counted",
        (("service.py", 'metrics.called(rpc, "" if reason in NAMELESS else name, ', "metrics.called(rpc, name, "),),
        (R1,),
    ),
    Mutation(
        "grpc-tells-what-it-likes",
        (("log.py", "    logging.getLogger(GRPC).addFilter(_in_one_line)\n", ""),),
        (R1, LOG),
    ),
    Mutation(
        "no-files-to-spare",
        (("supervisor.py", "SPARE_FILES = 16\n", "SPARE_FILES = 0\n"),),
        (SUPERVISOR,),
    ),
    Mutation(
        "aliases-without-bound",
        (("settings_file.py", "            if sizes[id(node)] > MOST_NODES:\n", "            if False:\n"),),
        (CONFIG,),
    ),
)
