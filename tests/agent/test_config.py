"""Settings: which source wins, and what is refused by which name."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from edge_agent import config
from edge_agent.cli import command
from edge_agent.cli.agent import serve
from edge_agent.config import Settings
from edge_agent.errors import AgentRefused


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for key in list(os.environ):
        if key.startswith("EDGE_AGENT_"):
            monkeypatch.delenv(key)


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "agent.yaml"
    file.write_text(text)
    return file


def test_defaults_are_the_contracts():
    settings = config.load()
    assert settings.socket == "unix:///tmp/aws.iot.lookoutvision.EdgeAgent.sock"
    assert (settings.socket_mode, settings.socket_group, settings.max_calls) == (0o660, "ggc_group", 64)
    assert settings.allow_root is False
    assert settings.any_image_size is False


def test_each_source_wins_over_the_one_before(tmp_path, monkeypatch):
    file = written(tmp_path, "max_calls: 2\nqueue_limit: 2\ndrain_timeout: 2\n")
    monkeypatch.setenv("EDGE_AGENT_QUEUE_LIMIT", "3")
    monkeypatch.setenv("EDGE_AGENT_DRAIN_TIMEOUT", "3")
    settings = config.load(file, {"drain_timeout": "4"})
    assert (settings.max_calls, settings.queue_limit, settings.drain_timeout) == (2, 3, 4)
    assert settings.load_timeout == Settings.model_fields["load_timeout"].default


def test_lists_from_every_source(tmp_path, monkeypatch):
    assert config.load(written(tmp_path, "models: [/a, /b]\n")).models == (Path("/a"), Path("/b"))
    monkeypatch.setenv("EDGE_AGENT_MODELS", "/c:/d")
    monkeypatch.setenv("EDGE_AGENT_AUTOSTART", "board,part")
    monkeypatch.setenv("EDGE_AGENT_TRUSTED_UIDS", "5,6")
    settings = config.load()
    assert settings.models == (Path("/c"), Path("/d"))
    assert settings.autostart == ("board", "part")
    assert settings.trusted_uids == (5, 6)
    assert config.load(None, {"models": ["/e"]}).models == (Path("/e"),)
    flags = config.load(None, {"autostart": ["part,cap", "lid"], "trusted_uids": ("7,8", "9"), "cpus": "0,1"})
    assert (flags.autostart, flags.trusted_uids, flags.cpus) == (("part", "cap", "lid"), (7, 8, 9), (0, 1))


@pytest.mark.parametrize(("text", "mode"), [("0660", 0o660), ("600", 0o600), ("0o640", 0o640), ("0777", 0o777)])
def test_mode_is_octal(tmp_path, monkeypatch, text, mode):
    assert config.load(written(tmp_path, f'socket_mode: "{text}"')).socket_mode == mode
    assert config.load(None, {"socket_mode": text}).socket_mode == mode
    monkeypatch.setenv("EDGE_AGENT_SOCKET_MODE", text)
    assert config.load().socket_mode == mode


@pytest.mark.parametrize("text", ["440", "0660", "660", "0x1b0", "4.4e+2", "true", ""])
def test_a_mode_without_quotes_is_refused(tmp_path, text):
    """YAML has read 440 in decimal and 0660 in octal by then, and nobody can tell which was meant."""
    with pytest.raises(AgentRefused, match='^socket_mode in .*: write the mode in quotes, in octal, as in "0660"$'):
        config.load(written(tmp_path, f"socket_mode: {text}"))


STRANGE = [
    ("EDGE_AGENT_MAX_CALS", "; EDGE_AGENT_MAX_CALLS is one"),
    ("EDGE_AGENT_MODEL", "; EDGE_AGENT_MODELS is one"),
    ("edge_agent_loglevel", "; EDGE_AGENT_LOG_LEVEL is one"),
    ("EDGE_AGENT_PORT", ""),  # Kubernetes sets it for a service of our name
]


@pytest.mark.parametrize(("name", "hint"), STRANGE)
def test_a_variable_that_is_no_setting_is_told_of(monkeypatch, name, hint):
    monkeypatch.setenv("EDGE_AGENT_SHARED", "/shared")
    monkeypatch.setenv("_EDGE_AGENT_COMPLETE", "")
    monkeypatch.setenv("EDGE_AGENT_MAX_CALLS", "3")
    monkeypatch.setenv("edge_agent_queue_limit", "3")
    assert config.strange_variables() == []
    done = CliRunner().invoke(command, ["config"], env={name: "3"})
    assert done.exit_code == 0
    assert done.stderr == f"warning: {name} is no setting and is ignored{hint}.\n"
    assert yaml.safe_load(done.stdout)["max_calls"] == 3


def test_settings_of_one_model(tmp_path):
    settings = config.load(written(tmp_path, "threads: 2\nmodel_settings:\n  board: {threads: 1, memory: 1GiB}\n"))
    assert settings.of_model("board", "threads") == 1
    assert settings.of_model("board", "memory") == 1 << 30
    assert settings.of_model("part", "threads") == 2
    assert settings.of_model("part", "memory") is None


def test_accelerators(tmp_path, monkeypatch):
    settings = config.load()
    assert (settings.accelerator, settings.fallback, settings.gpu, settings.precision) == (
        "auto",
        "never",
        0,
        "package",
    )
    assert (settings.gpu_memory_limit, settings.gpu_memory_reserve) == (None, 256 << 20)
    assert (settings.cuda_graphs, settings.build_timeout, settings.engine_cache_size) == (True, 1800, 4 << 30)
    text = "model_settings:\n  board: {accelerator: cpu, fallback: allowed, gpu: 1, gpu_memory: 2GiB, gpu_memory_limit: 3GiB}\n"
    monkeypatch.setenv("EDGE_AGENT_ACCELERATOR", "cuda")
    settings = config.load(written(tmp_path, text), {"precision": "fp16"})
    keys = ("accelerator", "fallback", "gpu", "precision", "gpu_memory", "gpu_memory_limit")
    assert [settings.of_model("board", key) for key in keys] == ["cpu", "allowed", 1, "fp16", 2 << 30, 3 << 30]
    assert [settings.of_model("part", key) for key in keys] == ["cuda", "never", 0, "fp16", None, None]


REFUSED = [
    ("accelerator: gpu", {}, {}, ["accelerator in ", "'auto', 'cpu', 'cuda' or 'tensorrt'"]),
    ("fallback: true", {}, {}, ["fallback in ", "'never' or 'allowed'"]),
    ("", {"EDGE_AGENT_GPU": "-1"}, {}, ["EDGE_AGENT_GPU"]),
    ("gpu: 64", {}, {}, ["gpu in "]),
    ("gpu: yes", {}, {}, ["gpu in ", "true and false are none"]),
    ("precision: fp32", {}, {}, ["precision in ", "'package', 'fp16' or 'int8'"]),
    ("gpu_memory_limit: 0", {}, {}, ["gpu_memory_limit in ", "greater than 0"]),
    ("build_timeout: .inf", {}, {}, ["build_timeout in "]),
    ("build_timeout: 0", {}, {}, ["build_timeout in "]),
    ("build_timeout: 604801", {}, {}, ["build_timeout in ", "less than or equal to 604800"]),
    ("load_timeout: 1.0e+8", {}, {}, ["load_timeout in ", "less than or equal to 604800"]),
    ("", {}, {"call_timeout": "1e8"}, ["--call-timeout", "less than or equal to 604800"]),
    ("model_settings: {board: {call_timeout: 1.0e+8}}", {}, {}, ["model_settings.board.call_timeout", "604800"]),
    ("", {}, {"memory_reserve": "10XB"}, ["--memory-reserve", "write a size", "256MiB"]),
    ("memory_limit: much", {}, {}, ["memory_limit in ", "write a size", "256MiB"]),
    ("", {}, {"registry": "/x"}, ["--registry: the registry needs registry_roots"]),
    ("registry: /x", {}, {}, ["registry in ", "the registry needs registry_roots"]),
    ("model_settings: {board: {accelerator: npu}}", {}, {}, ["model_settings.board.accelerator"]),
    # YAML, environment, flags, words of the refusal
    ("max_calls: 0", {}, {}, ["max_calls in ", "greater than or equal to 1"]),
    ("max_cals: 5", {}, {}, ["max_cals", "no such setting"]),
    ("model_settings: {board: {thread: 1}}", {}, {}, ["model_settings.board.thread", "no such setting"]),
    ("", {"EDGE_AGENT_MAX_CALLS": "many"}, {}, ["EDGE_AGENT_MAX_CALLS"]),
    ("", {"EDGE_AGENT_SOCKET": "tcp:localhost"}, {}, ["EDGE_AGENT_SOCKET", "Unix domain sockets"]),
    ("", {}, {"log_level": "loud"}, ["--log-level"]),
    ("", {}, {"socket": "unix://relative"}, ["--socket", "absolute"]),
    ("", {}, {"socket": "/tmp/" + "x" * 110}, ["--socket", "107 bytes"]),
    ("", {}, {"socket": "/tmp/"}, ["--socket", "path of the socket is missing"]),
    ("", {}, {"socket_mode": "rw"}, ["--socket-mode", "octal"]),
    ("", {}, {"socket_mode": "1777"}, ["--socket-mode", "at most 0777"]),
    ("", {"EDGE_AGENT_SOCKET_MODE": "-660"}, {}, ["EDGE_AGENT_SOCKET_MODE", "octal"]),
    ('socket_mode: "0890"', {}, {}, ["socket_mode", "octal"]),
    ("drain_timeout: .nan", {}, {}, ["drain_timeout"]),
    ("call_timeout: .inf", {}, {}, ["call_timeout"]),
    ("- max_calls", {}, {}, ["--config", "mapping"]),
    ("max_calls: [", {}, {}, ["--config", "not YAML", "in line 1"]),
    ("1: 2", {}, {}, ["--config", "the key '1', which is no name of a setting"]),
    ("~: 2", {}, {}, ["--config", "the key 'None'"]),
    ("max_calls: 1\nthreads: 1\nmax_calls: 2", {}, {}, ["sets 'max_calls' twice, in lines 1 and 3; leave one out"]),
    ("model_settings:\n board: {threads: 1, threads: 2}", {}, {}, ["sets 'threads' twice, in lines 2 and 2"]),
    ("queue_limit: true", {}, {}, ["queue_limit in ", "true and false are none"]),
    ("drain_timeout: yes", {}, {}, ["drain_timeout in ", "true and false are none"]),
    ("memory_reserve: off", {}, {}, ["memory_reserve in ", "true and false are none"]),
    ("model_settings: {board: {threads: on}}", {}, {}, ["model_settings.board.threads", "true and false are none"]),
    ("trusted_uids: [true]", {}, {}, ["trusted_uids.0", "true and false are none"]),
    ("trusted_uids: [-1]", {}, {}, ["trusted_uids.0", "greater than or equal to 0"]),
    ("", {"EDGE_AGENT_TRUSTED_UIDS": "5,-1"}, {}, ["EDGE_AGENT_TRUSTED_UIDS.1", "greater than or equal to 0"]),
    ("trusted_uids: [4294967295]", {}, {}, ["trusted_uids.0", "less than or equal to 4294967294"]),
    ("{" * 3000, {}, {}, ["--config", "not YAML"]),
    (f"queue_limit: {'9' * 5000}", {}, {}, ["--config", "not YAML"]),
    ('socket_group: "a\\0b"', {}, {}, ["socket_group", "no name can have"]),
    ('models: ["a\\0b"]', {}, {}, ["models", "no name can have"]),
    ('state_dir: "\\ud800"', {}, {}, ["state_dir", "no name can have"]),
    ("", {}, {"models": [""]}, ["--models", "empty path"]),
    ("", {}, {"state_dir": ""}, ["--state-dir", "empty path"]),
    ("", {}, {"socket": "/tmp/a%41b"}, ["--socket", "%"]),
    ("", {}, {"socket_group": "99999999999"}, ["--socket-group", "4294967294"]),
    ("", {"EDGE_AGENT_MODEL_SETTINGS": "{"}, {}, ["model_settings", "JSON"]),
]


@pytest.mark.parametrize(("text", "environment", "flags", "words"), REFUSED, ids=lambda value: str(value)[:30])
def test_nonsense_is_refused_by_name(tmp_path, monkeypatch, text, environment, flags, words):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(AgentRefused) as caught:
        config.load(written(tmp_path, text), flags)
    for word in words:
        assert word in str(caught.value)


def test_all_mistakes_are_named_at_once(tmp_path):
    with pytest.raises(AgentRefused) as caught:
        config.load(written(tmp_path, "max_calls: 0\nqueue_limit: -1\n"))
    assert len(str(caught.value).splitlines()) == 2


def test_missing_file(tmp_path):
    with pytest.raises(AgentRefused, match="--config .*No such file"):
        config.load(tmp_path / "nowhere.yaml")


BOMB = "a: &a [0,0,0,0,0,0,0,0,0,0]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "aliases that grow": (BOMB, "has more than 100000 values, written out; it may use fewer aliases"),
    "aliases of the aliases": (BOMB + "<<: [*i]\n", "has more than 100000 values"),
    "itself": ("a: &a [*a]", "has in line 1 a value that contains itself"),
    "itself, further down": ("a: &a\n  b: {c: [*a]}", "has in line 1 a value that contains itself"),
    "itself as a whole": ("&a\nmodels: *a", "a value that contains itself"),
    "much": ("max_calls: 1 #" + "x" * (1 << 20), "is larger than 1 MiB"),
    "no text": (b"\xff\xfe\xfd", "is not YAML"),
    "control characters": ("a: \x1b", "is not YAML"),
    "a name of control characters": (r'"a\x1b\nb": 1', r"a\x1b\nb in "),
    "a FIFO": (os.mkfifo, "Not a regular file"),
    "no end": ("/dev/zero", "Not a regular file"),
    "a folder": ("/", "Is a directory"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_at_once(tmp_path, kind):
    """In a process of its own, which has to end."""
    what, told = HOSTILE[kind]
    file = tmp_path / "agent.yaml"
    if callable(what):
        what(file)
    elif what in ("/", "/dev/zero"):
        file = Path(what)
    else:
        file.write_bytes(what if isinstance(what, bytes) else what.encode())
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent", "config", "--config", str(file)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.removesuffix("\n").isprintable()


def test_aliases_may_be_used(tmp_path):
    text = "model_settings:\n  a: &usual {threads: 2, memory: 1GiB}\n  b: *usual\n  c: {<<: *usual, threads: 1}\n"
    settings = config.load(written(tmp_path, text))
    assert [settings.of_model(name, "threads") for name in "abc"] == [2, 2, 1]
    assert settings.of_model("c", "memory") == 1 << 30


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        config.load().max_calls = 5  # type: ignore[misc]


def test_every_setting_is_described_and_has_a_flag():
    flags = {flag for parameter in serve.params for flag in parameter.opts}
    for key, field in Settings.model_fields.items():
        assert field.description, key
        assert f"--{key.replace('_', '-')}" in flags or key == "model_settings"


def test_flags_tell_defaults_and_choices():
    told = " ".join(CliRunner().invoke(command, ["serve", "--help"], terminal_width=200).output.split())
    assert "--max-calls VALUE Detections in hand" in told
    for words in (
        "one more is refused. [default: 64]",
        "[auto|cpu|cuda|tensorrt]",
        '[default: "0660"]',
        "[default: 4GiB]",
    ):
        assert words in told
    for flag in ("--cpus N,N...", "--autostart MODEL,...", "--models DIR", "--log-file FILE", "--socket ADDRESS"):
        assert flag in told


def test_config_prints_what_serve_would_use(tmp_path):
    file = written(tmp_path, "max_calls: 7\n")
    arguments = ["config", "--config", str(file), "--models", "/a", "--models", "/b", "--allow-root"]
    done = CliRunner().invoke(command, arguments, env={"EDGE_AGENT_QUEUE_LIMIT": "9"})
    assert done.exit_code == 0, done.output
    printed = yaml.safe_load(done.output)
    assert (printed["max_calls"], printed["queue_limit"], printed["models"]) == (7, 9, ["/a", "/b"])
    assert (printed["allow_root"], printed["socket_mode"]) == (True, "0660")
    assert set(printed) == set(Settings.model_fields)
    again = config.load(written(tmp_path, done.output))
    assert again.max_calls == 7, "what is printed can be read again"


def test_refusal_is_one_sentence_on_stderr_and_exit_code_2():
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent", "serve", "--max-calls", "none"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: --max-calls: ")
    assert len(done.stderr.splitlines()) == 1


def test_state_folder_is_found_where_systemd_and_xdg_put_it(tmp_path, monkeypatch):
    from edge_agent import state

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert state.folder(None) == tmp_path / "home/.local/state/edge-agent"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert state.folder(None) == tmp_path / "xdg/edge-agent"
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path / 'systemd'}:/elsewhere")
    assert state.folder(None) == tmp_path / "systemd"
    assert state.folder(tmp_path / "flag") == tmp_path / "flag"
    assert stat.S_IMODE((tmp_path / "flag").stat().st_mode) == 0o700


def test_folders_above_the_state_folder_are_not_as_open_as_the_umask_has_them(tmp_path):
    from edge_agent import state

    before = os.umask(0)
    try:
        made = state.folder(tmp_path / "local" / "state" / "edge-agent")
    finally:
        os.umask(before)
    for folder in (made, made.parent, made.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
