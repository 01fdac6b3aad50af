"""The engine cache: what is in any way not as it was written is never returned, and nothing that fails costs the caller."""

import contextlib
import errno
import fcntl
import gc
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.backends import engine_files, engines
from edge_agent.backends.engines import EngineCache, EngineKey, digest_of
from edge_agent.packages import ModelFiles
from support.agent import environment
from support.open_files import nothing_stays_open, open_files
from support.users import AGENT, I_AM_ROOT, MYSELF, OTHER, agent_user
from support.waiting import until

KEY = EngineKey("ab" * 32, "NVIDIA Orin", "sm_87", "10.3.0", "540.4.0", {"precision": "fp16", "workspace": "0"})
PLENTY = 1 << 20
ENGINE = b"the engine, as it was built"
OTHERS = {
    "model_sha256": "cd" * 32,
    "gpu_name": "NVIDIA Xavier",
    "gpu_code": "sm_72",
    "tensorrt": "10.7.0",
    "driver": "550.1",
    "options": {"precision": "fp32", "workspace": "0"},
}
as_root = pytest.mark.skipif(not I_AM_ROOT, reason="only root can give a file to another user")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "engines"


@pytest.fixture
def cache(path: Path) -> EngineCache:
    return EngineCache(path, PLENTY)


@pytest.fixture(autouse=True)
def _all_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=engines.logger.name)


def only(path: Path, kind: str = "engine") -> Path:
    (found,) = path.glob(f"*.{kind}")
    return found


def kinds(path: Path) -> list[str]:
    return sorted(one.suffix for one in path.iterdir())


def kept(path: Path, key: EngineKey = KEY, data: bytes = ENGINE) -> Path:
    """Keep an engine; return its file."""
    EngineCache(path, PLENTY).write(key, data)
    return path / f"{key.digest}.engine"


def digest(key: EngineKey = KEY, **parts: object) -> str:
    return replace(key, **parts).digest


# What an engine depends on


@pytest.mark.parametrize("part", OTHERS)
def test_each_part_of_the_key_makes_another_engine(cache: EngineCache, part: str) -> None:
    other = replace(KEY, **{part: OTHERS[part]})
    cache.write(KEY, ENGINE)
    assert cache.read(other) is None
    assert cache.read(KEY) == ENGINE


def test_the_order_of_options_makes_no_other_engine(cache: EngineCache) -> None:
    cache.write(KEY, ENGINE)
    assert cache.read(replace(KEY, options=dict(reversed(KEY.options.items())))) == ENGINE


def test_parts_cannot_run_into_each_other() -> None:
    assert digest(gpu_name="a", gpu_code="bc") != digest(gpu_name="ab", gpu_code="c")
    assert digest(options={"a": "b"}) != digest(options={"a": "b", "": ""})


@pytest.mark.parametrize(
    "other",
    [
        ModelFiles(b"graph ", {"weights": b"1234"}),
        ModelFiles(b"graph", {"weights": b"1235"}),
        ModelFiles(b"graph", {"weight": b"s1234"}),
        ModelFiles(b"graph", {"other": b"1234"}),
        ModelFiles(b"graph", {"weights": b"12", "more": b"34"}),
        ModelFiles(b"graph"),
        ModelFiles(b"graphweights1234"),
    ],
)
def test_a_models_digest_is_of_all_its_files_and_their_names(other: ModelFiles) -> None:
    model = ModelFiles(b"graph", {"weights": b"1234"})
    assert digest_of(model) == digest_of(ModelFiles(b"graph", {"weights": b"1234"}))
    assert digest_of(model) != digest_of(other)


def test_the_order_of_files_makes_no_other_model() -> None:
    assert digest_of(ModelFiles(b"", {"a": b"1", "b": b"2"})) == digest_of(ModelFiles(b"", {"b": b"2", "a": b"1"}))


# Keeping and reading


def test_an_engine_is_kept_for_the_next_process(cache: EngineCache, path: Path) -> None:
    assert cache.read(KEY) is None
    cache.write(KEY, ENGINE)
    assert EngineCache(path, PLENTY).read(KEY) == ENGINE


def test_it_is_private(cache: EngineCache, path: Path) -> None:
    before = os.umask(0)
    try:
        cache.write(KEY, ENGINE)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == 0o700
    assert only(path).stat().st_mode & 0o7777 == 0o600


def test_an_engine_is_replaced(cache: EngineCache, path: Path) -> None:
    cache.write(KEY, ENGINE)
    cache.write(KEY, b"another")
    assert cache.read(KEY) == b"another"
    assert kinds(path) == [".engine"]


def test_an_empty_engine_is_one(cache: EngineCache) -> None:
    cache.write(KEY, b"")
    assert cache.read(KEY) == b""


def test_the_file_is_on_the_disk_before_it_has_its_name(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    fsync, rename = os.fsync, os.rename

    def spy_sync(fd: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
        fsync(fd)

    def spy_rename(*args: object, **more: object) -> None:
        done.append("rename")
        rename(*args, **more)

    monkeypatch.setattr(engine_files.os, "fsync", spy_sync)
    monkeypatch.setattr(engine_files.os, "rename", spy_rename)
    cache.write(KEY, ENGINE)
    assert done == ["file", "rename", "folder"]


def test_timings_are_of_the_device_and_not_of_the_model(cache: EngineCache) -> None:
    assert cache.read_timing(KEY) == b""
    cache.write_timing(KEY, b"timings")
    assert cache.read_timing(replace(KEY, model_sha256="ef" * 32, options={})) == b"timings"
    assert cache.read(KEY) is None
    for part in ("gpu_name", "gpu_code", "tensorrt", "driver"):
        assert cache.read_timing(replace(KEY, **{part: OTHERS[part]})) == b""


def test_it_tells_which_engines_of_a_model_were_built_and_used(cache: EngineCache, path: Path) -> None:
    other = replace(KEY, options={})

    def told() -> dict[str, int]:
        return dict(EngineCache(path, PLENTY).of_model(KEY.model_sha256))

    assert told() == {}
    cache.write(KEY, ENGINE)
    used_at(path, KEY, 1)
    first = told()
    assert list(first.values()) == [10**9]
    cache.write_timing(KEY, b"timings")
    assert told() == first
    assert cache.read(KEY) == ENGINE
    assert told().keys() == first.keys()
    assert told() != first  # it was used
    cache.write(KEY, ENGINE)
    again = told()
    assert len(again) == 1
    assert again.keys() != first.keys()  # the same was built once more
    cache.folder(other)
    assert told() == again
    cache.seal(other)
    assert len(told().keys() - again.keys()) == 1
    used_at(path, other, 1, "seal")
    sealed_before = told()
    EngineCache(path, PLENTY).folder(other)
    cache.folder(other)
    assert told().keys() == sealed_before.keys()
    assert told() != sealed_before
    assert EngineCache(path, PLENTY).of_model(OTHERS["model_sha256"]) == {}


def test_a_cache_of_no_size_keeps_nothing_and_makes_no_folder(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    none = EngineCache(path, 0)
    none.write(KEY, ENGINE)
    none.seal(KEY)
    assert none.read(KEY) is None
    assert none.read_timing(KEY) == b""
    assert none.folder(KEY) is None
    assert none.of_model(KEY.model_sha256) == {}
    assert not path.exists()
    assert caplog.messages == []


# Damage


def removed(path: Path, caplog: pytest.LogCaptureFixture, what: str) -> None:
    """Check that the engine is not returned, but removed, and that one line says why; then that it can be kept again."""
    caplog.clear()
    cache = EngineCache(path, PLENTY)
    assert cache.read(KEY) is None
    (line,) = caplog.messages
    assert line.startswith(f"{KEY.digest[:12]}.engine was removed from the engine cache, since ")
    assert what in line
    assert list(path.iterdir()) == []
    cache.write(KEY, ENGINE)
    assert cache.read(KEY) == ENGINE


def test_every_flipped_byte_is_noticed(path: Path) -> None:
    file = kept(path)
    whole = file.read_bytes()
    cache = EngineCache(path, PLENTY)
    assert cache.read(KEY) == ENGINE
    for place in range(len(whole)):
        for flip in (0x01, 0x80, 0xFF):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            file.chmod(0o600)
            assert cache.read(KEY) is None, (place, flip)
            assert not file.exists(), (place, flip)


def test_every_truncation_is_noticed(path: Path) -> None:
    file = kept(path)
    whole = file.read_bytes()
    cache = EngineCache(path, PLENTY)
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        file.chmod(0o600)
        assert cache.read(KEY) is None, length
        assert not file.exists(), length


@pytest.mark.parametrize(
    ("place", "what"),
    [(0, "of another format"), (8, "of another format"), (-1, "content is not the one that was written")],
)
def test_the_line_says_what_is_damaged(path: Path, caplog: pytest.LogCaptureFixture, place: int, what: str) -> None:
    file = kept(path)
    damaged = bytearray(file.read_bytes())
    damaged[place] ^= 1
    file.write_bytes(damaged)
    removed(path, caplog, what)


@pytest.mark.parametrize(
    ("length", "what"), [(10, "cut off"), (-1, "the length that it says"), (None, "the length that it says")]
)
def test_the_line_says_that_it_is_cut_off_or_too_long(
    path: Path, caplog: pytest.LogCaptureFixture, length: int | None, what: str
) -> None:
    file = kept(path)
    whole = file.read_bytes()
    file.write_bytes(whole + b"more" if length is None else whole[:length])
    removed(path, caplog, what)


def test_a_key_beyond_all_bounds_is_not_read(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = kept(path)
    size = engine_files.LONGEST_KEY + 1
    head = engine_files.HEAD.pack(engine_files.MAGIC, engine_files.FORMAT, size, 0, bytes(16))
    file.write_bytes(head + bytes(32 + size))
    removed(path, caplog, "the length that it says")


@pytest.mark.parametrize("part", OTHERS)
def test_an_engine_under_anothers_name_is_stale(path: Path, caplog: pytest.LogCaptureFixture, part: str) -> None:
    kept(path, replace(KEY, **{part: OTHERS[part]})).rename(path / f"{KEY.digest}.engine")
    removed(path, caplog, f"it was built for another {part.replace('_', ' ')}.")


def with_key(path: Path, key: bytes) -> Path:
    """Put an engine in the place of KEY's that says it is for another key."""
    path.mkdir(parents=True, exist_ok=True)
    store = os.open(path, os.O_RDONLY)
    engine_files.write(store, f"{KEY.digest}.engine", key, ENGINE)
    os.close(store)
    return path / f"{KEY.digest}.engine"


@pytest.mark.parametrize("key", [b"{", b"[]", b"null", b"{}", b'"text"', b"\xff", b"[" * 60_000, b""])
def test_an_engine_whose_key_cannot_be_read_is_damaged(
    path: Path, caplog: pytest.LogCaptureFixture, key: bytes
) -> None:
    with_key(path, key)
    removed(path, caplog, "it is damaged: what it was built for cannot be read")


def test_a_key_that_is_only_written_otherwise_is_damaged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with_key(path, json.dumps(json.loads(KEY.json), indent=1).encode())
    removed(path, caplog, "it is damaged: its key is written otherwise")


def test_what_cannot_be_unlinked_and_is_no_folder_is_told_as_such(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = kept(path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match="Read-only file system"):
        engine_files.remove(file)


@pytest.mark.parametrize("key", [b"{", b"[]", b"\xff", b"[" * 60_000])
def test_a_key_that_cannot_be_read_is_in_nobodys_way(path: Path, key: bytes) -> None:
    with_key(path, key)
    other = replace(KEY, model_sha256="01" * 32)
    cache = EngineCache(path, PLENTY)
    cache.write(other, ENGINE)
    assert cache.read(other) == ENGINE


# Who could have written it


@as_root
def test_an_engine_of_another_user_is_not_loaded(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.chown(kept(path), OTHER.uid, -1)
    removed(path, caplog, f"it belongs to uid {OTHER.uid}, and the agent runs as uid 0")


@as_root
@pytest.mark.parametrize(
    ("mode", "what"), [(0o600, "we may not read it"), (0o644, "it belongs to uid 0, and the agent")]
)
def test_an_engine_of_root_is_not_loaded_by_the_agents_user(folder: Path, mode: int, what: str) -> None:
    """As it is where root built ahead for the agent: who runs as another user does not trust that either."""
    if agent_user() == MYSELF:
        pytest.skip("the agent's user cannot run this Python")
    path = folder / "engines"
    file = kept(path)
    file.chmod(mode)
    os.chown(path, AGENT.uid, AGENT.gid)
    done = run(program(path, "print(cache.read(key))"), **AGENT.popen())
    assert done.stdout.strip() == "None"
    assert what in done.stderr
    assert not file.exists()


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o660])
def test_an_engine_that_others_may_write_is_not_loaded(path: Path, caplog: pytest.LogCaptureFixture, mode: int) -> None:
    kept(path).chmod(mode)
    removed(path, caplog, f"others may write it (its mode is {mode:04o})")


def test_a_link_is_not_followed(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = kept(path)
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    removed(path, caplog, "it is a link")
    assert elsewhere.exists()


def test_a_file_with_a_second_name_is_not_loaded(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "second").hardlink_to(kept(path))
    removed(path, caplog, "it has a second name")


def test_a_fifo_is_not_waited_for(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept(path).unlink()
    os.mkfifo(path / f"{KEY.digest}.engine")
    removed(path, caplog, "it is no plain file")


def test_a_folder_in_the_place_of_an_engine_is_removed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = kept(path)
    file.unlink()
    file.mkdir()
    (file / "something").touch()
    removed(path, caplog, "it is no plain file")


def test_what_is_larger_than_all_may_be_is_not_read(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = kept(path)
    with file.open("r+b") as sparse:
        sparse.truncate(PLENTY + 1)
    removed(path, caplog, f"it has {PLENTY + 1} bytes, more than the {PLENTY} that all may have")


def test_nothing_is_removed_for_a_fault_of_the_system(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = kept(path)
    opening = os.open

    def no_more_files(name: object, *args: object, **more: object) -> int:
        if str(name).endswith(".engine"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opening(name, *args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(engine_files.os, "open", no_more_files)
        assert EngineCache(path, PLENTY).read(KEY) is None
    assert caplog.messages == [f"An engine could not be read in {path}: Too many open files."]
    assert file.exists()


def test_what_cannot_be_removed_is_not_loaded_either(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(path).chmod(0o666)

    def refuse(_: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(engine_files, "remove", refuse)
    assert EngineCache(path, PLENTY).read(KEY) is None
    (line,) = caplog.messages
    assert "others may write it" in line
    assert line.endswith("it cannot be removed: Operation not permitted.")


# The folder


def unusable(cache: EngineCache, path: Path, caplog: pytest.LogCaptureFixture, what: str) -> None:
    """Check that the cache does nothing, that one line says why, and that nothing is changed."""
    before = sorted(os.listdir(path)) if path.is_dir() else None
    cache.write(KEY, ENGINE)
    assert cache.read(KEY) is None
    assert cache.folder(KEY) is None
    cache.seal(KEY)
    (line,) = caplog.messages
    assert line == f"The engine cache {path} is not used, since {what}; remove it."
    assert (sorted(os.listdir(path)) if path.is_dir() else None) == before


def test_a_link_to_a_folder_is_not_used(cache: EngineCache, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    elsewhere = path.with_name("elsewhere")
    elsewhere.mkdir()
    path.symlink_to(elsewhere)
    unusable(cache, path, caplog, "it is a link or no folder")


def test_a_link_to_nowhere_is_not_followed(cache: EngineCache, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    path.symlink_to(path.with_name("elsewhere"))
    unusable(cache, path, caplog, "it is a link or no folder")
    assert not path.with_name("elsewhere").exists()


def test_a_file_in_its_place_is_not_used(cache: EngineCache, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    path.touch()
    unusable(cache, path, caplog, "it is a link or no folder")


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o702])
def test_a_folder_that_others_may_write_is_not_used(
    cache: EngineCache, path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    path.mkdir(parents=True)
    path.chmod(mode)
    unusable(cache, path, caplog, f"others may write it (its mode is {mode:04o})")


def test_a_folder_that_others_may_read_is_closed_to_them(cache: EngineCache, path: Path) -> None:
    path.mkdir(parents=True)
    path.chmod(0o755)
    cache.write(KEY, ENGINE)
    assert path.stat().st_mode & 0o7777 == 0o700
    assert cache.read(KEY) == ENGINE


@as_root
def test_a_folder_of_another_user_is_not_used(cache: EngineCache, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.mkdir(parents=True)
    os.chown(path, OTHER.uid, OTHER.gid)
    unusable(cache, path, caplog, f"it belongs to uid {OTHER.uid}, and the agent runs as uid 0")


def test_a_folder_that_cannot_be_made_costs_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    cache = EngineCache(tmp_path / "file" / "engines", PLENTY)
    cache.write(KEY, ENGINE)
    assert cache.of_model(KEY.model_sha256) == {}
    assert [line.rpartition(": ")[2] for line in caplog.messages] == ["Not a directory."] * 2


# Writes that do not come to their end


def run(program: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd="/",
        env=environment(),
        **more,
    )


def program(path: Path, body: str, most: int = PLENTY) -> str:
    """Return a program that has `cache`, `key` and `engine_files`."""
    return (
        "import os, sys, time\nfrom pathlib import Path\nfrom edge_agent.backends import engine_files\n"
        "from edge_agent.backends.engines import EngineCache, EngineKey\n"
        f"key = EngineKey({KEY.model_sha256!r}, {KEY.gpu_name!r}, {KEY.gpu_code!r}, {KEY.tensorrt!r}, {KEY.driver!r}, {dict(KEY.options)!r})\n"
        f"cache = EngineCache(Path({str(path)!r}), {most})\n{body}\n"
    )


@contextlib.contextmanager
def running(path: Path, body: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program until it has printed a line; kill it at the end, with SIGKILL, wherever it is."""
    process = subprocess.Popen(
        [sys.executable, "-c", program(path, body)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        cwd="/",
        env=environment(),
    )
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


IN_THE_MIDDLE = """
def stop(_):
    print("ready", flush=True)
    time.sleep(60)
engine_files.os.fsync = stop
cache.write(key, bytes(100_000))
"""


def test_killed_in_the_middle_of_a_write_it_leaves_the_old_one_whole(path: Path) -> None:
    kept(path)
    with running(path, IN_THE_MIDDLE) as process:
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    (leftover,) = path.glob(".*.new")
    assert leftover.stat().st_size > 100_000
    cache = EngineCache(path, PLENTY)
    assert cache.read(KEY) == ENGINE
    cache.write(KEY, b"new")
    assert cache.read(KEY) == b"new"
    assert kinds(path) == [".engine"]  # swept


def test_what_another_process_is_writing_is_not_swept(path: Path) -> None:
    with running(path, IN_THE_MIDDLE):
        (writing,) = path.glob(".*.new")
        EngineCache(path, PLENTY).write(KEY, ENGINE)
        assert writing.exists()
        assert EngineCache(path, PLENTY).read(KEY) == ENGINE


def test_what_is_named_like_a_temporary_file_and_is_none_stays(cache: EngineCache, path: Path, tmp_path: Path) -> None:
    cache.write(KEY, ENGINE)
    (path / ".0123456789abcdef.new").symlink_to(tmp_path)
    (path / "note.txt").write_text("ours")
    cache.write(KEY, ENGINE)
    assert (path / ".0123456789abcdef.new").is_symlink()
    assert (path / "note.txt").exists()


def test_swept_before_it_was_locked_it_is_made_again(
    cache: EngineCache, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = []
    lock = fcntl.flock

    def sweep_first(fd: int, operation: int) -> None:
        if not swept:
            swept.extend(path.glob(".*.new"))
            swept[0].unlink()
        lock(fd, operation)

    monkeypatch.setattr(engine_files.fcntl, "flock", sweep_first)
    cache.write(KEY, ENGINE)
    assert len(swept) == 1
    assert cache.read(KEY) == ENGINE


def test_a_file_system_without_locks_keeps_engines(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: object, __: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(engine_files.fcntl, "flock", none)
    cache.write(KEY, ENGINE)
    assert cache.read(KEY) == ENGINE


WRITES = """
data = bytes([int(sys.stdin.readline())]) * 50_000 if not print("ready", flush=True) else b""
for number in range(40):
    cache.write(key, data)
    cache.write_timing(key, data[:number])
    got = cache.read(key)
    assert got is None or (len(got) == 50_000 and len(set(got)) == 1), len(got)
    assert got is not None
print("done", flush=True)
"""


def test_several_processes_may_write_at_once(path: Path) -> None:
    with contextlib.ExitStack() as opened:
        writers = [opened.enter_context(running(path, WRITES)) for _ in range(4)]
        for number, writer in enumerate(writers):
            writer.stdin.write(f"{number}\n")
            writer.stdin.flush()
        for writer in writers:
            assert writer.stdout.readline() == "done\n"
    cache = EngineCache(path, PLENTY)
    data = cache.read(KEY)
    assert data in [bytes([number]) * 50_000 for number in range(4)]
    assert kinds(path) == [".engine", ".timing"]


def test_a_full_disk_costs_a_line_and_keeps_the_old_one(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A limit on the size of files, which fails a write as a full disk does: in its middle."""
    kept(path)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        EngineCache(path, PLENTY).write(KEY, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert caplog.messages == [f"An engine could not be kept in {path}: File too large."]
    assert kinds(path) == [".engine"]
    assert EngineCache(path, PLENTY).read(KEY) == ENGINE


@as_root
def test_a_really_full_disk_costs_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        cache = EngineCache(small / "engines", PLENTY)
        cache.write(KEY, ENGINE)
        cache.write(replace(KEY, options={}), bytes(200_000))
        assert caplog.messages == [f"An engine could not be kept in {small / 'engines'}: No space left on device."]
        assert cache.read(KEY) == ENGINE
        assert kinds(small / "engines") == [".engine"]
    finally:
        subprocess.run(["umount", small], check=True)


# Room


def size_of_one(data: bytes = ENGINE) -> int:
    return engine_files.size_with(KEY.json, data)


def models(count: int) -> list[EngineKey]:
    return [replace(KEY, model_sha256=f"{number:064x}") for number in range(count)]


def used_at(path: Path, key: EngineKey, second: int, kind: str = "engine") -> None:
    os.utime(path / f"{key.digest}.{kind}", (second, second))


def test_the_least_recently_used_goes_first(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two, three, four = models(4)
    cache = EngineCache(path, 3 * size_of_one())
    for second, key in enumerate((one, two, three)):
        cache.write(key, ENGINE)
        used_at(path, key, second)
    assert cache.read(one) == ENGINE  # which is a use
    assert caplog.messages == []
    cache.write(four, ENGINE)
    assert [cache.read(key) for key in (one, two, three, four)] == [ENGINE, None, ENGINE, ENGINE]
    assert caplog.messages == [
        f"{two.digest[:12]}.engine was removed from the engine cache, since it was used least recently, and room is needed."
    ]


def test_the_one_just_written_stays_whatever_it_takes(path: Path) -> None:
    keys = models(5)
    cache = EngineCache(path, size_of_one(bytes(1000)))
    for second, key in enumerate(keys):
        cache.write(key, ENGINE)
        used_at(path, key, 1_000_000_000_000 + second)  # the clock was wrong, and was set back since
    new = replace(KEY, model_sha256="ff" * 32)
    cache.write(new, bytes(1000))
    assert cache.read(new) == bytes(1000)
    assert len(list(path.iterdir())) == 1


def test_room_is_made_before_it_is_needed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At no moment there is more than there may be: the disk may be no larger."""
    one, two = models(2)
    cache = EngineCache(path, size_of_one() + 10)
    cache.write(one, ENGINE)
    largest = []
    write = engine_files.write

    def spy(store: int, *args: object) -> None:
        largest.append(sum(file.stat().st_size for file in path.iterdir()))
        write(store, *args)

    monkeypatch.setattr(engine_files, "write", spy)
    cache.write(two, ENGINE)
    assert largest == [0]


def test_an_engine_larger_than_all_may_be_is_not_kept(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = EngineCache(path, size_of_one())
    cache.write(KEY, ENGINE)
    cache.write(replace(KEY, model_sha256="cd" * 32), ENGINE + b"!")
    sizes = f"An engine of {size_of_one() + 1} bytes is not kept, since the cache may have {size_of_one()} in all"
    assert caplog.messages == [f"{sizes}; raise engine_cache_size."]
    assert cache.read(KEY) == ENGINE


def test_replacing_an_engine_needs_no_room_of_others(path: Path) -> None:
    one, two = models(2)
    cache = EngineCache(path, 2 * size_of_one())
    cache.write(one, ENGINE)
    cache.write(two, ENGINE)
    cache.write(two, ENGINE)
    assert cache.read(one) == ENGINE


# Updates of the driver and of TensorRT


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ("driver", "the driver '540.4.0', and now there is '550.1'"),
        ("tensorrt", "TensorRT '10.3.0', and now there is '10.7.0'"),
    ],
)
def test_what_was_built_with_another_version_goes(
    cache: EngineCache, path: Path, caplog: pytest.LogCaptureFixture, part: str, what: str
) -> None:
    new = replace(KEY, **{part: OTHERS[part]})
    elsewhere = replace(KEY, model_sha256="cd" * 32)
    cache.write(KEY, ENGINE)
    cache.write(replace(KEY, options={}), ENGINE)
    cache.write(elsewhere, ENGINE)
    cache.write_timing(KEY, b"timings")
    cache.folder(KEY)
    cache.seal(KEY)
    EngineCache(path, PLENTY).write(new, ENGINE)
    assert cache.read(KEY) is None
    assert cache.read(replace(KEY, options={})) is None
    assert cache.read(elsewhere) == ENGINE  # nobody has built that anew
    assert cache.read_timing(KEY) == b"timings"
    assert (path / f"{KEY.digest}.files").exists()  # a process uses it
    assert len(caplog.messages) == 2
    assert all(line.endswith(f"since it was built with {what}.") for line in caplog.messages)
    cache.write_timing(new, b"new timings")
    assert cache.read_timing(KEY) == b""
    assert cache.read_timing(new) == b"new timings"


def test_engines_of_other_options_and_other_gpus_stay(cache: EngineCache) -> None:
    others = [replace(KEY, **{part: OTHERS[part]}) for part in ("options", "gpu_name", "gpu_code", "model_sha256")]
    for key in others:
        cache.write(key, ENGINE)
    cache.write(replace(KEY, gpu_name="NVIDIA T4", driver="550.1"), ENGINE)
    cache.write(KEY, ENGINE)
    assert [cache.read(key) for key in others] == [ENGINE] * 4


# Folders that a runtime keeps its files in itself


def sealed(path: Path, key: EngineKey = KEY, **content: bytes) -> Path:
    """Build into a key's folder, as a process of its own would, and seal it."""
    cache = EngineCache(path, PLENTY)
    folder = cache.folder(key)
    assert folder is not None
    for name, data in (content or {"model": b"an engine"}).items():
        (folder / name).write_bytes(data)
    cache.seal(key)
    ended(cache)
    return folder


def ended(cache: EngineCache) -> None:
    """Let go of what a process that ends lets go of."""
    for fd in cache._held.values():
        os.close(fd)
    cache._held.clear()


def test_a_folder_comes_back_as_it_was_sealed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = sealed(path, model=b"an engine", profile=b"shapes")
    cache = EngineCache(path, PLENTY)
    assert cache.folder(KEY) == folder
    assert {one.name: one.read_bytes() for one in folder.iterdir()} == {"model": b"an engine", "profile": b"shapes"}
    assert folder.stat().st_mode & 0o7777 == 0o700
    assert caplog.messages == []


def test_a_folder_is_of_one_key(path: Path) -> None:
    folder = sealed(path)
    for part, value in OTHERS.items():
        other = EngineCache(path, PLENTY).folder(replace(KEY, **{part: value}))
        assert other != folder
        assert list(other.iterdir()) == []


def test_what_a_runtime_wrote_is_closed_to_others(path: Path) -> None:
    before = os.umask(0)
    try:
        folder = sealed(path)
    finally:
        os.umask(before)
    assert (folder / "model").stat().st_mode & 0o7777 == 0o600
    assert list(EngineCache(path, PLENTY).folder(KEY).iterdir()) != []


def damage_content(folder: Path) -> None:
    (folder / "model").write_bytes(b"an Engine")


def damage_length(folder: Path) -> None:
    (folder / "model").write_bytes(b"an engin")


def damage_more(folder: Path) -> None:
    (folder / "planted").write_bytes(b"an engine")


def damage_less(folder: Path) -> None:
    (folder / "model").unlink()


def damage_name(folder: Path) -> None:
    (folder / "model").rename(folder / "other")


def damage_link(folder: Path) -> None:
    (folder / "model").rename(folder.parent / "elsewhere")
    (folder / "model").symlink_to(folder.parent / "elsewhere")


def damage_second_name(folder: Path) -> None:
    (folder.parent / "second").hardlink_to(folder / "model")


def damage_mode(folder: Path) -> None:
    (folder / "model").chmod(0o620)


def damage_fifo(folder: Path) -> None:
    (folder / "model").unlink()
    os.mkfifo(folder / "model")


def damage_folder(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "file").touch()


DAMAGE = {
    damage_content: "its content is not the one that was sealed",
    damage_length: "its content is not the one that was sealed",
    damage_more: "its content is not the one that was sealed",
    damage_less: "its content is not the one that was sealed",
    damage_name: "its content is not the one that was sealed",
    damage_link: "it is a link",
    damage_second_name: "a second name",
    damage_mode: "others may write it",
    damage_fifo: "no plain file",
    damage_folder: "no plain file",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_folder_that_was_changed_comes_back_empty(
    path: Path, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    damage(sealed(path))
    cache = EngineCache(path, PLENTY)
    folder = cache.folder(KEY)
    assert list(folder.iterdir()) == []
    (line,) = caplog.messages
    assert line.startswith(f"{KEY.digest[:12]}.seal was removed from the engine cache, since ")
    assert DAMAGE[damage] in line
    (folder / "model").write_bytes(b"built anew")
    cache.seal(KEY)
    ended(cache)
    assert (EngineCache(path, PLENTY).folder(KEY) / "model").read_bytes() == b"built anew"


@as_root
def test_a_folder_with_a_file_of_another_user_comes_back_empty(path: Path) -> None:
    os.chown(sealed(path) / "model", OTHER.uid, -1)
    assert list(EngineCache(path, PLENTY).folder(KEY).iterdir()) == []


@as_root
def test_a_file_of_another_user_is_not_sealed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = EngineCache(path, PLENTY)
    folder = cache.folder(KEY)
    (folder / "model").touch()
    os.chown(folder / "model", OTHER.uid, -1)
    cache.seal(KEY)
    assert "belongs to uid" in caplog.messages[0]
    assert kinds(path) == [".files"]


@pytest.mark.parametrize("place", [0, 20, 60, -1])
def test_a_damaged_seal_counts_as_none(path: Path, place: int) -> None:
    sealed(path)
    seal = only(path, "seal")
    damaged = bytearray(seal.read_bytes())
    damaged[place] ^= 1
    seal.write_bytes(damaged)
    assert list(EngineCache(path, PLENTY).folder(KEY).iterdir()) == []


def test_a_build_that_was_not_sealed_is_begun_anew(path: Path) -> None:
    with running(
        path,
        'Path(cache.folder(key), "half").write_bytes(b"half an engine")\nprint("ready", flush=True)\ntime.sleep(60)',
    ):
        assert (only(path, "files") / "half").exists()
    folder = EngineCache(path, PLENTY).folder(KEY)
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_a_link_is_replaced(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = sealed(path)
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    again = EngineCache(path, PLENTY).folder(KEY)
    assert again == folder
    assert not again.is_symlink()
    assert list(again.iterdir()) == []
    assert list(elsewhere.iterdir()) != []
    assert "it is a link or no folder" in caplog.messages[0]


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_could_write_is_replaced(path: Path, caplog: pytest.LogCaptureFixture, mode: int) -> None:
    sealed(path).chmod(mode)
    again = EngineCache(path, PLENTY).folder(KEY)
    assert list(again.iterdir()) == []
    assert again.stat().st_mode & 0o7777 == 0o700
    assert "others may write it" in caplog.messages[0]


def test_a_folder_is_sealed_again_only_when_it_changed(path: Path) -> None:
    sealed(path)
    seal = only(path, "seal")
    first = seal.stat().st_ino
    cache = EngineCache(path, PLENTY)
    folder = cache.folder(KEY)
    cache.seal(KEY)
    assert seal.stat().st_ino == first
    (folder / "profile").write_bytes(b"shapes")
    cache.seal(KEY)
    assert seal.stat().st_ino != first
    ended(cache)
    assert len(list(EngineCache(path, PLENTY).folder(KEY).iterdir())) == 2


def test_asked_for_twice_in_a_process_it_is_the_same_folder(path: Path) -> None:
    cache = EngineCache(path, PLENTY)
    folder = cache.folder(KEY)
    (folder / "half").touch()
    assert cache.folder(KEY) == folder
    assert list(folder.iterdir()) == []


def test_sealing_what_was_never_asked_for_costs_a_line(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    EngineCache(path, PLENTY).seal(KEY)
    assert caplog.messages == [f"An engine could not be kept in {path}: No such file or directory."]


BUILDS = """
folder = cache.folder(key)
(folder / "model").write_bytes(b"an engine")
print("ready", flush=True)
sys.stdin.readline()
cache.seal(key)
print("sealed", flush=True)
time.sleep(60)
"""


def test_while_another_process_builds_it_nothing_is_kept(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(path, BUILDS) as builder:
        cache = EngineCache(path, PLENTY)
        assert cache.folder(KEY) is None
        assert caplog.messages == [
            f"Another process builds the same engine in {path}; the one that is built now is not kept."
        ]
        builder.stdin.write("\n")
        builder.stdin.flush()
        assert builder.stdout.readline() == "sealed\n"
        # Once it is there both may use it.
        folder = cache.folder(KEY)
        assert (folder / "model").read_bytes() == b"an engine"


def test_what_is_sealed_is_used_by_several_at_once(path: Path) -> None:
    folder = sealed(path)
    with running(path, 'assert list(cache.folder(key).iterdir())\nprint("ready", flush=True)\ntime.sleep(60)'):
        assert EngineCache(path, PLENTY).folder(KEY) == folder
        assert (folder / "model").read_bytes() == b"an engine"


def test_what_another_process_uses_is_not_wiped(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = sealed(path)
    uses = 'assert cache.folder(key)\nprint("ready", flush=True)\ntime.sleep(60)'
    with running(path, uses):
        only(path, "seal").unlink()
        assert EngineCache(path, PLENTY).folder(KEY) is None
        assert list(folder.iterdir()) != []
    assert len(caplog.messages) == 1
    assert list(EngineCache(path, PLENTY).folder(KEY).iterdir()) == []


def test_folders_count_and_the_least_recently_used_goes_first(path: Path) -> None:
    one, two, three = models(3)
    folders = [sealed(path, key, model=bytes(10_000)) for key in (one, two)]
    used_at(path, one, 2, "seal")
    used_at(path, two, 1, "seal")
    small = EngineCache(path, 25_000)
    third = small.folder(three)
    (third / "model").write_bytes(bytes(10_000))
    small.seal(three)
    assert [folder.exists() for folder in (*folders, third)] == [True, False, True]
    assert not (path / f"{two.digest}.seal").exists()


def test_a_folder_in_use_is_not_removed_to_make_room(path: Path) -> None:
    one, two = models(2)
    used = EngineCache(path, PLENTY)
    folder = used.folder(one)
    (folder / "model").write_bytes(bytes(10_000))
    used.seal(one)
    EngineCache(path, 12_000).write(two, bytes(5000))
    assert (folder / "model").exists()
    ended(used)
    EngineCache(path, 12_000).write(two, bytes(5000))
    assert not folder.exists()


def test_what_is_left_of_a_folder_is_removed_to_make_room(path: Path) -> None:
    one, two, three, four = models(4)
    sealed(path, one)
    (path / f"{one.digest}.files" / "model").unlink()
    (path / f"{one.digest}.files").rmdir()  # its seal alone
    unsealed = EngineCache(path, PLENTY)
    (unsealed.folder(two) / "half").write_bytes(bytes(1000))
    ended(unsealed)
    sealed(path, three)
    (path / f"{three.digest}.files").rename(path / "aside")
    (path / f"{three.digest}.files").write_bytes(bytes(1000))  # no folder
    (path / f"{four.digest}.files").symlink_to(path / "aside")
    EngineCache(path, size_of_one()).write(KEY, ENGINE)
    assert sorted(one.name for one in path.iterdir()) == sorted(["aside", f"{KEY.digest}.engine"])
    assert list((path / "aside").iterdir()) != []


@pytest.mark.parametrize("made_again", [False, True])
def test_removed_while_it_is_being_locked_it_is_made_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, made_again: bool
) -> None:
    folder = sealed(path)
    lock = engines.entries.lock
    raced = []

    def removed_first(fd: int) -> bool | None:
        if not raced:
            raced.append(fd)
            engine_files.remove(folder)
            if made_again:
                folder.mkdir(0o700)
        return lock(fd)

    monkeypatch.setattr(engines.entries, "lock", removed_first)
    cache = EngineCache(path, PLENTY)
    assert cache.folder(KEY) == folder
    assert list(folder.iterdir()) == []
    assert raced
    assert EngineCache(path, PLENTY).folder(KEY) is None  # it is the one in the folder that is locked


def test_a_file_system_without_locks_has_no_folders(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: object, __: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(engines.entries.fcntl, "flock", none)
    with nothing_stays_open():
        assert EngineCache(path, PLENTY).folder(KEY) is None
    assert caplog.messages == [f"An engine could not be kept in {path}: No locks available."]


def test_nothing_stays_open(path: Path) -> None:
    kept(path)
    gc.collect()
    before = open_files()
    damage_mode(sealed(path))
    with_key(path, b"{")
    cache = EngineCache(path, PLENTY)
    for _ in range(3):
        cache.read(KEY)
        cache.write(KEY, ENGINE)
        cache.folder(KEY)
        cache.seal(KEY)
        cache.of_model(KEY.model_sha256)
        (path / f"{KEY.digest}.engine").chmod(0o666)
    until(lambda: len(open_files() - before) == 1, "only the folder's lock is open")
