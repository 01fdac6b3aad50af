"""The safeguards that are broken one at a time: what is replaced in the package, and the suites that should notice.

Run by mutations.py.
"""

from dataclasses import dataclass
from pathlib import Path

ACCEPTED = "tests/agent/test_accepted.py"
ADMISSION = "tests/agent/test_admission.py"
BITMAPS = "tests/agent/test_bitmaps.py"
BLOCK = "tests/agent/test_block.py"
BUDGET = "tests/agent/test_budget.py"
C1 = "tests/promises/crashes"
C2 = "tests/promises/hangs"
C3 = "tests/promises/agent_killed"
C4 = "tests/promises/wall_clock"
C5 = "tests/promises/broken_models"
CALLS = "tests/agent/test_calls.py"
CONFIG = "tests/agent/test_config.py"
D1 = "tests/promises/full_disk"
FILES = "tests/agent/test_files.py"
G1 = "tests/promises/soak"
HEALTH = "tests/contract/test_health_served.py"
IMAGES = "tests/contract/test_images.py::test_what_a_model_calls_its_parts_does_not_reach_the_log_as_it_is"
L1 = "tests/promises/lifecycle_storm"
L2 = "tests/promises/swaps"
LIFE = "tests/contract/test_life.py"
LOG = "tests/agent/test_log.py"
MANIFEST = "tests/agent/test_manifest.py"
MODELS = "tests/agent/test_models.py"
ORDER = "tests/contract/test_keeping_up.py::test_first_come_first_served"
P1 = "tests/promises/mutated_packages"
P2 = "tests/promises/half_copied"
P3 = "tests/promises/foreign_files"
PACKAGES = "tests/agent/test_packages.py"
Q1 = "tests/promises/overload"
Q2 = "tests/promises/expired"
Q3 = "tests/promises/large_messages"
R1 = "tests/promises/fuzzed_wire"
CATALOG = "tests/agent/test_catalog.py"
REGISTRY = "tests/contract/test_registry.py::TestAnswers"
S1 = "tests/promises/torn_segments"
S2 = "tests/promises/not_segments"
S3 = "tests/promises/segment_names"
S4 = "tests/promises/boundaries"
S5 = "tests/promises/masks"
S6 = "tests/promises/leaks"
S7 = "tests/promises/changing_input"
S8 = "tests/promises/shm_full"
SERVING = "tests/agent/test_serving.py"
SLOTS = "tests/contract/test_slots.py"
STATE = "tests/agent/test_parts.py::TestState"
STATUS = "tests/agent/test_status.py"
SUPERVISOR = "tests/agent/test_supervisor.py"
T1 = "tests/promises/sigterm"
T2 = "tests/promises/sigterm_midway"
TRIMMING = "tests/agent/test_trimming.py"
THREADS = "tests/agent/test_threads.py"
U1 = "tests/promises/one_socket"
U2 = "tests/promises/occupied_path"
U3 = "tests/promises/socket_mode"
U4 = "tests/promises/bad_connections"
U5 = "tests/promises/two_users"
UNIX_SOCKET = "tests/agent/test_unix_socket.py"
UNREAD = "tests/contract/test_keeping_up.py::test_answers_that_nobody_reads_are_bounded"
WATCHDOG = "tests/agent/test_watchdog.py"
WIRE = "tests/agent/test_wire.py"

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
        (
            (
                "packages.py",
                "        if most is not None and info.st_size > most and not head:\n",
                "        if False:\n",
            ),
        ),
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
        (("serving.py", "self._budget.died(time.monotonic(), ran=ran)", "self._budget.died(time.time(), ran=ran)"),),
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
        "state-files-in-place",
        (
            (
                "files.py",
                '        with open(beside, "xb", opener=partial(_made, mode=mode)) as file:\n',
                '        with open(path, "wb", opener=partial(_made, mode=mode)) as file:\n',
            ),
            ("files.py", "        beside.replace(path)\n", ""),
        ),
        (C3, STATE, STATUS, FILES),
    ),
    Mutation(
        "hangs-are-waited-for",
        (("supervisor.py", "        if not one.answers(TERMINATE_PATIENCE):\n", "        if False:\n"),),
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
                "        os.close(self.inbox)\n        os.close(self.outbox)\n",
                "",
            ),
        ),
        (L1, G1),
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
                "        return following if following and following.package else None\n",
                "        return None\n",
            ),
        ),
        (L2, SERVING),
    ),
    Mutation(
        "a-refusal-is-final",
        (
            (
                "serving.py",
                '                self._again(text, "not_started", NOT_REPLACED)\n',
                "                self._fail(NOT_REPLACED, text)\n",
            ),
        ),
        (LIFE, SERVING),
    ),
    Mutation(
        "what-changed-on-disk-is-not-started",
        (("serving.py", "            return self._settled(following or found)\n", "            return found\n"),),
        (LIFE, SERVING),
    ),
    Mutation(
        "a-thread-that-is-refused-ends-the-server",
        (("threads.py", "            if not self._threads:\n                raise\n", "            raise\n"),),
        (LIFE, THREADS),
    ),
    Mutation(
        "half-a-look-counts",
        (("catalog.py", "            if chosen.get(name) == self._chosen.get(name):\n", "            if name:\n"),),
        (CATALOG,),
    ),
    Mutation(
        "acknowledged-before-it-serves",
        (("models.py", "        if self._registry and self._serving:\n", "        if self._registry:\n"),),
        (REGISTRY,),
    ),
    Mutation(
        "acknowledged-before-the-path-is-there",
        (
            ("server.py", "        models.start_wanted()\n", ""),
            (
                "server.py",
                "        served.publish()\n",
                "        models.start_wanted()\n        served.publish()\n",
            ),
        ),
        (REGISTRY,),
    ),
    Mutation(
        "acknowledged-while-calls-are-refused",
        (("server.py", "        models.fall_silent()\n", ""),),
        (REGISTRY,),
    ),
    Mutation(
        "no-drain",
        (("server.py", "accepted.wait(self._settings.drain_timeout)", "accepted.wait(0)"),),
        (T1, LIFE),
    ),
    Mutation(
        "end-waits-for-hung-workers",
        (("models.py", "        for model in models:\n            model.close()\n", ""),),
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
                "+ name.encode(), access | OPEN_FLAGS)",
                "+ name.encode(), access | OPEN_FLAGS | (os.O_CREAT if access == os.O_RDWR else 0), 0o600)",
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
                "            verdict, class_map = self.pipeline.judge(pixels)\n",
                (
                    "            verdict, _ = self.pipeline.judge(pixels)\n"
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
        (("service.py", "        except DecodeError:\n", "        except ZeroDivisionError:\n"),),
        (R1,),
    ),
    Mutation(
        "a-handle-does-not-replace-pixels",
        (("wire.py", "BYTE_DATA, but_not=HANDLE)", "BYTE_DATA)"),),
        (WIRE,),
    ),
    Mutation(
        "all-jobs-in-one-slot",
        (("serving.py", "worker.call(job, inline, turn.slot)", "worker.call(job, inline)"),),
        (SLOTS,),
    ),
    Mutation(
        "names-of-callers-are-counted",
        (("service.py", "            if isinstance(error, NAMELESS):\n", "            if False:\n"),),
        (R1,),
    ),
    Mutation(
        "grpc-tells-what-it-likes",
        (("log.py", "    logging.getLogger(GRPC).addFilter(_in_one_line)\n", ""),),
        (R1, LOG),
    ),
    Mutation(
        "no-files-to-spare",
        (("spawner.py", "SPARE_FILES = 16\n", "SPARE_FILES = 0\n"),),
        (SUPERVISOR,),
    ),
    Mutation(
        "aliases-without-bound",
        (("settings_file.py", "            if sizes[id(node)] > MOST_NODES:\n", "            if False:\n"),),
        (CONFIG,),
    ),
    Mutation(
        "no-lock-of-the-socket",
        (("state.py", "            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n", "            pass\n"),),
        (U1,),
    ),
    Mutation(
        "no-connect-probe",
        (("unix_socket.py", "        if _answers(self._path):\n", "        if False:\n"),),
        (U2, U1),
    ),
    Mutation(
        "anybody's-socket-is-removed",
        (("unix_socket.py", "        if info.st_uid != os.geteuid():\n", "        if False:\n"),),
        (U2,),
    ),
    Mutation(
        "links-on-the-path-are-followed",
        (
            (
                "unix_socket.py",
                "            info = self._path.lstat()\n        except FileNotFoundError",
                "            info = self._path.stat()\n        except FileNotFoundError",
            ),
        ),
        (U2,),
    ),
    Mutation(
        "what-was-killed-stays",
        (("unix_socket.py", "        self._remove_left()\n", ""),),
        (U2, UNIX_SOCKET),
    ),
    Mutation(
        "umask-dropped",
        (("unix_socket.py", "        before = os.umask(0o777 & ~self._mode)\n", "        before = os.umask(0)\n"),),
        (U3, LIFE),
    ),
    Mutation(
        "chmod-after-the-bind",
        (
            ("unix_socket.py", "        before = os.umask(0o777 & ~self._mode)\n", "        before = os.umask(0)\n"),
            (
                "unix_socket.py",
                "        self._private = self._make_folder() / PRIVATE\n",
                '        self._private = self._path.with_name(f"{self._mark}xx")\n',
            ),
            (
                "unix_socket.py",
                '        give_to_group(self._private, self._group, "the socket")\n',
                '        self._private.chmod(self._mode)\n        give_to_group(self._private, self._group, "the socket")\n',
            ),
        ),
        (U3,),
    ),
    Mutation(
        "private-folder-for-all",
        (("unix_socket.py", "                folder.mkdir(mode=stat.S_IRWXU)\n", "                folder.mkdir()\n"),),
        (U3, UNIX_SOCKET),
    ),
    Mutation(
        "no-group-of-the-socket",
        (("unix_socket.py", '        give_to_group(self._private, self._group, "the socket")\n', ""),),
        (U3, U5),
    ),
    Mutation(
        "path-is-overwritten",
        (
            (
                "unix_socket.py",
                "            os.link(self._private, self._path, follow_symlinks=False)\n",
                "            os.rename(self._private, self._path)\n",
            ),
        ),
        (UNIX_SOCKET,),
    ),
    Mutation(
        "few-open-files",
        (("server.py", "        _raise_file_limit()\n", ""),),
        (U4,),
    ),
    Mutation(
        "mode-for-all",
        (("unix_socket.py", "        self._mode = mode\n", "        self._mode = mode | 0o006\n"),),
        (U5, U3),
    ),
    Mutation(
        "any-file-of-that-name",
        (("packages.py", "        if seen and _seen(info) != seen:\n", "        if False:\n"),),
        (P2, PACKAGES),
    ),
    Mutation(
        "digest-of-the-path",
        # Where another file is there for a moment, the one that comes back has the right digest.
        (
            (
                "packages.py",
                "read_file(package.folder, model_file, one_link=True, seen=package.model_seen)",
                "read_file(package.folder, model_file, one_link=True)",
            ),
            (
                "packages.py",
                "        if hashlib.sha256(data).hexdigest() != digest.sha256:\n",
                "        if hashlib.sha256((package.folder / path).read_bytes()).hexdigest() != digest.sha256:\n",
            ),
        ),
        (P2,),
    ),
    Mutation(
        "digests-unchecked",
        (("packages.py", "        if hashlib.sha256(data).hexdigest() != digest.sha256:\n", "        if False:\n"),),
        (P2,),
    ),
    Mutation(
        "changes-during-the-load",
        (("worker.py", "        _check_unchanged(found)\n", ""),),
        (P2,),
    ),
    Mutation(
        "class-names-as-they-are",
        (
            (
                "classes.py",
                "    if unsafe := next((name for name in names if UNSAFE.search(name)), None):\n",
                '    if unsafe := "":\n',
            ),
        ),
        (P1, MANIFEST),
    ),
    Mutation(
        "nesting-without-end",
        (("manifest.py", "    except (ValueError, RecursionError) as error:\n", "    except ValueError as error:\n"),),
        (P1, MANIFEST),
    ),
    Mutation(
        "sentences-without-end",
        (("manifest.py", "stage's type is {stage_type!r:.80};", "stage's type is {stage_type!r};"),),
        (MANIFEST,),
    ),
    Mutation(
        "normal-classes-are-guessed",
        (("manifest.py", "    if required and not ids:\n", "    if False:\n"),),
        (MANIFEST,),
    ),
    Mutation(
        "memory-below-nothing",
        (("block.py", "    if peak < 0:\n", "    if False:\n"),),
        (BLOCK,),
    ),
    Mutation(
        "no-look-for-room",
        (
            (
                "state.py",
                '            with tempfile.TemporaryDirectory(dir=folder) as like:\n                Path(like, "socket").touch()\n',
                "            pass\n",
            ),
        ),
        (D1, STATE),
    ),
    Mutation(
        "each-lost-line-is-told",
        (("log.py", "        if now - self._told < QUIET:\n", "        if False:\n"),),
        (D1, LOG),
    ),
    Mutation(
        "status-or-nothing",
        (
            (
                "status.py",
                "            self._complain(error.strerror or str(error))\n",
                "            self._complain(error.strerror or str(error))\n            os._exit(1)\n",
            ),
        ),
        (D1,),
    ),
    Mutation(
        "a-start-must-be-remembered",
        (
            (
                "state.py",
                '        except OSError as error:\n            logger.warning(\n                "The list of running models cannot be written,',
                '        except ZeroDivisionError as error:\n            logger.warning(\n                "The list of running models cannot be written,',
            ),
        ),
        (D1, STATE),
    ),
    Mutation(
        "everybody-may-write-packages",
        (("packages.py", "        if mode & stat.S_IWOTH:\n", "        if False:\n"),),
        (P3,),
    ),
    Mutation(
        "everybody-may-own-packages",
        (("packages.py", "        if uid not in allowed:\n", "        if False:\n"),),
        (P3,),
    ),
    Mutation(
        "folders-above-are-trusted",
        (
            (
                "packages.py",
                "    entries = [(str(root), root.stat()), *((str(path), path.lstat()) for path in above[: above.index(root)])]\n",
                "    entries = [(str(path), path.stat()) for path in above[:1]]\n",
            ),
        ),
        (P3,),
    ),
    Mutation(
        "hard-links-are-taken",
        (("packages.py", "    if stat.S_ISREG(info.st_mode) and info.st_nlink != 1:\n", "    if False:\n"),),
        (P3,),
    ),
    Mutation(
        "links-to-packages-are-followed",
        (
            (
                "packages.py",
                "                if entry.is_dir(follow_symlinks=False):\n",
                "                if entry.is_dir():\n",
            ),
        ),
        (P3,),
    ),
    Mutation(
        "links-to-a-model-are-followed",
        (
            ("packages.py", "READING_FLAGS = os.O_RDONLY | os.O_NOFOLLOW", "READING_FLAGS = os.O_RDONLY"),
            ("packages.py", "        return path.lstat()\n", "        return path.stat()\n"),
        ),
        (P3,),
    ),
    Mutation(
        "links-above-are-followed",
        (("packages.py", '            if path.startswith("/"):\n', "            if False:\n"),),
        (PACKAGES,),
    ),
    Mutation(
        "as-deep-as-calls-may-go",
        (
            (
                "packages.py",
                "    entries += _walk(folder)\n",
                (
                    "    for place, folders, names in os.walk(folder):\n"
                    "        paths = [Path(place, name) for name in (*folders, *names)]\n"
                    "        entries += [(str(path.relative_to(folder)), path.lstat()) for path in paths]\n"
                ),
            ),
        ),
        (PACKAGES,),  # with Python 3.10 and 3.11; later ones walk without calls of calls, and are caught by the count
    ),
    Mutation(
        "any-number-may-wait",
        (
            (
                "calls.py",
                "            if len(self._waiting) >= self._limit + len(self._free):\n",
                "            if False:\n",
            ),
        ),
        (Q1,),
    ),
    Mutation(
        "expired-calls-are-computed",
        (
            (
                "calls.py",
                "self._woken.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))",
                "self._woken.wait()",
            ),
            (
                "calls.py",
                "        return self.given_up or (deadline is not None and time.monotonic() >= deadline)\n",
                "        return False\n",
            ),
            (
                "service.py",
                (
                    "            if not context.add_callback(turn.give_up):\n"
                    "                turn.give_up()  # the call ended before it was taken up\n"
                ),
                "",
            ),
        ),
        (Q2,),
    ),
    Mutation(
        "calls-dead-on-arrival-are-computed",
        (
            (
                "calls.py",
                "            if turn.in_vain(deadline):\n                raise Expired(EXPIRED)\n            turn.number",
                "            turn.number",
            ),
        ),
        (CALLS, Q2),
    ),
    Mutation(
        "one-model-takes-all-places",
        (
            (
                "admission.py",
                "            if self._total + self._deployed() >= self._most:\n                self._check(name)\n",
                "            if self._total >= self._most:\n                raise CannotKeepUp(self._full(name, 0))\n",
            ),
        ),
        (ADMISSION, MODELS, Q1),
    ),
    Mutation(
        "what-large-messages-leave-stays",
        (("server.py", "            trimmer.start()\n", "            pass\n"),),
        (Q3,),
    ),
    Mutation(
        "who-cannot-be-replaced-lives",
        (("budget.py", "        if not ran and self._deaths:\n", "        if False:\n"),),
        (BUDGET,),
    ),
    Mutation(
        "what-many-messages-leave-stays",
        (
            (
                "trimming.py",
                "                if self._has() > self._least + KEPT:\n                    self._trim()\n",
                "",
            ),
        ),
        (TRIMMING,),
    ),
    Mutation(
        "what-images-leave-stays-when-none-comes",
        (("trimming.py", "            else:\n                self._trim()\n", ""),),
        (TRIMMING,),
    ),
    Mutation(
        "what-messages-leave-stays-while-more-come",
        (("trimming.py", "                if self._has() > self._least + TOO_MUCH:\n", "                if False:\n"),),
        (TRIMMING, Q3),
    ),
    Mutation(
        "the-watchdog-tells-by-a-timer",
        (("watchdog.py", "            failed = self._call()\n", "            failed = self._call() and ''\n"),),
        (WATCHDOG, f"{HEALTH}::TestWatchdog"),
    ),
)
