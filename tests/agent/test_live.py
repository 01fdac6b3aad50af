"""What of the settings can change while the agent runs: which keys, from when on, and what becomes of bad values."""

import logging

import pytest

from edge_agent import config, live
from edge_agent.config import PREFIX, Settings
from edge_agent.live import LIVE, OF_THE_STEPS, SETTINGS, Live, key_of

# What each key may become, and what the setting is then.
CHANGES = {
    "LogLevel": ("debug", "debug"),
    "QueueLimit": ("3", 3),
    "Restart": ("never", "never"),
    "MemoryReserve": ("1GiB", 1 << 30),
    "GpuMemoryReserve": ("1GiB", 1 << 30),
    "MemoryFactor": ("2", 2.0),
    "CallTimeout": ("2.5", 2.5),
    "LoadTimeout": ("60", 60.0),
}


class Agent:
    """Settings as an agent was started with them, what has been adopted since then, and the lines about it."""

    def __init__(self, caplog, environment: dict[str, str], file=None, flags=None) -> None:
        self.adopted: list[Settings] = []
        self._caplog = caplog
        settings = config._load(
            config.Sources(file, config.settings_file.read(file) if file else {}, flags or {}), environment
        )
        self.live = Live(settings, self.adopted.append, environment)

    def take(self, **values: object) -> list[str]:
        """Take a configuration; return the lines about it."""
        self._caplog.clear()
        self.live.take(values)
        return [record.getMessage() for record in self._caplog.records]

    @property
    def settings(self) -> Settings:
        return self.live.settings


@pytest.fixture(autouse=True)
def _lines(caplog):
    caplog.set_level(logging.INFO)


@pytest.fixture
def agent(caplog):
    """One that the nucleus started with the defaults of the recipe, where all values are empty."""
    one = Agent(caplog, {})
    assert one.take(**dict.fromkeys(SETTINGS, "")) == []
    return one


def test_each_key_that_can_change_is_tried_here():
    assert {key_of(name) for name in LIVE} == {*CHANGES, "ModelSettings"}
    assert {*LIVE} <= {*Settings.model_fields}


@pytest.mark.parametrize("key", CHANGES)
def test_a_change_is_adopted_and_goes_back_to_the_default(agent, key):
    text, value = CHANGES[key]
    name = SETTINGS[key]
    before = getattr(agent.settings, name)
    assert value != before
    [told] = agent.take(**{key: text})
    assert told == f"{key} is {text!r} now; {LIVE[name]}."
    assert getattr(agent.adopted[-1], name) == value
    [told] = agent.take(**{key: ""})
    assert told == f"{key} is its default now; {LIVE[name]}."
    assert getattr(agent.adopted[-1], name) == before
    assert len(agent.adopted) == 2


@pytest.mark.parametrize("key", [*sorted({*SETTINGS} - {key_of(name) for name in LIVE})])
def test_any_other_key_takes_effect_at_the_next_start(agent, key):
    text = {
        "Socket": "unix:///tmp/other.sock", "SocketMode": "0600", "RegistryRoots": "/x", "Registry": "/a/work/b/c",
        "Target": "strict", "Accelerator": "cpu", "Fallback": "allowed", "Precision": "fp16", "Orphans": "stop",
        "MessageMemory": "keep", "LogFormat": "json", "Spinning": "true", "Restore": "false", "AllowRoot": "true",
        "AnyImageSize": "true", "CudaGraphs": "false", "MetricsAddress": "127.0.0.1:9100",
    }.get(key, "2")  # fmt: skip
    assert agent.take(**{key: text}) == [f"{key} is {text!r} now; it takes effect when the component starts again."]
    assert agent.adopted == []


@pytest.mark.parametrize("key", OF_THE_STEPS)
def test_a_key_of_the_steps(caplog, key):
    agent = Agent(caplog, {})
    assert agent.take(**{key: "a"}) == []
    assert agent.take(**{key: "b"}) == [f"{key} is 'b' now; it takes effect when the component starts again."]


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("LogLevel", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("LogLevel", "INFO", "'debug', 'info', 'warning' or 'error'"),
        ("QueueLimit", "many", "valid integer"),
        ("QueueLimit", "-1", "greater than or equal to 0"),
        ("QueueLimit", "1000000", "less than or equal to 100000"),
        ("QueueLimit", "3.5", "valid integer"),
        ("QueueLimit", True, "valid integer"),
        ("QueueLimit", ["3"], "valid integer"),
        ("QueueLimit", {"a": "3"}, "valid integer"),
        ("MemoryReserve", "much", "write a size"),
        ("CallTimeout", "0", "greater than 0"),
        ("CallTimeout", "inf", "604800"),
        ("LoadTimeout", "nan", ""),
        ("Restart", "always", "'on-failure' or 'never'"),
        ("ModelSettings", "{", "write it as JSON"),
        ("ModelSettings", '["board"]', "dictionary"),
        ("ModelSettings", '{"board": {"queue_limit": -1}}', "ModelSettings.board.queue_limit"),
        ("ModelSettings", {"board": {"tea": 1}}, "no such setting"),
        ("MaxCalls", "0", "greater than or equal to 1"),
        ("Models", "a\0b", "character that no name can have"),
        ("LogLevel", "\x1b[2J\n2026-01-31T12:00:00.000Z INFO Ended.", "'debug', 'info', 'warning' or 'error'"),
        ("LogLevel", "x" * 5000, "'debug', 'info', 'warning' or 'error'"),
        ("ModelSettings", {"x" * 5000: {"tea": 1}}, "ModelSettings.xxx"),
        ("ModelSettings", {f"board-{number}": {"tea": 1} for number in range(500)}, "ModelSettings.board-0.tea"),
    ],
)
def test_a_bad_value_is_refused_once_and_the_old_one_stays(agent, key, value, why):
    before = agent.settings
    [told] = agent.take(**{key: value})
    assert told.startswith(f"{key} cannot be ")
    assert "stays as it was" in told
    assert why in told
    assert PREFIX not in told
    assert told.isprintable()
    assert len(told) < 1000
    assert agent.take(**{key: value}) == [], "it is not refused again and again"
    assert agent.settings is before
    assert agent.adopted == []


def test_several_errors_are_one_line(agent):
    [told] = agent.take(ModelSettings={"a": {"queue_limit": -1}, "b": {"call_timeout": 0}})
    assert "ModelSettings.a.queue_limit" in told
    assert "; ModelSettings.b.call_timeout" in told


def test_of_a_good_and_a_bad_key_the_good_one_counts(agent):
    told = agent.take(QueueLimit="3", LogLevel="loud", MaxCalls="no", CallTimeout="7", Slots="2")
    assert sorted(line.split()[0] for line in told) == ["CallTimeout", "LogLevel", "MaxCalls", "QueueLimit", "Slots"]
    assert sorted(line.split()[0] for line in told if "cannot be" in line) == ["LogLevel", "MaxCalls"]
    assert (agent.settings.queue_limit, agent.settings.call_timeout) == (3, 7)
    assert (agent.settings.log_level, agent.settings.max_calls, agent.settings.slots) == ("info", 64, 1)


def test_after_a_bad_value_a_good_one_is_taken(agent):
    agent.take(QueueLimit="many")
    assert agent.take(QueueLimit="3") == [f"QueueLimit is '3' now; {LIVE['queue_limit']}."]
    assert agent.settings.queue_limit == 3


def test_after_a_bad_value_another_key_can_change(agent):
    agent.take(MaxCalls="none", LogLevel="loud")
    agent.take(MaxCalls="none", LogLevel="loud", QueueLimit="3")
    assert agent.settings.queue_limit == 3


def test_a_key_that_is_removed_is_its_default(agent):
    agent.take(QueueLimit="3")
    assert agent.take() == [f"QueueLimit is its default now; {LIVE['queue_limit']}."]
    assert agent.settings.queue_limit == 16


@pytest.mark.parametrize("value", [8, "8"])
def test_a_number_counts_as_its_text(agent, value):
    agent.take(QueueLimit=value)
    assert agent.settings.queue_limit == 8


def test_none_is_the_default(agent):
    assert agent.take(QueueLimit=None) == []


def test_keys_that_are_no_settings_are_none_of_ours(agent):
    assert (
        agent.take(accessControl={"aws.greengrass.ipc.mqttproxy": {}}, queue_limit="3", Scan="/x", StateDir="/y") == []
    )
    assert agent.adopted == []


def test_a_change_that_was_made_since_the_start_is_noticed_at_first(caplog):
    """The nucleus made the environment of the configuration; by the time it is reached, that may be another one."""
    agent = Agent(caplog, {"EDGE_AGENT_QUEUE_LIMIT": "5", "EDGE_AGENT_MAX_CALLS": "9", "EDGE_AGENT_RESTART": ""})
    assert agent.take(QueueLimit="5", MaxCalls="9", Restart="", LogLevel="") == []
    again = Agent(caplog, {"EDGE_AGENT_QUEUE_LIMIT": "5"})
    assert again.take(QueueLimit="3") == [f"QueueLimit is '3' now; {LIVE['queue_limit']}."]


def test_what_the_startup_step_makes_of_a_key_is_no_change(caplog):
    agent = Agent(caplog, {"EDGE_AGENT_REGISTRY": "/g/work/a/models.d", "EDGE_AGENT_TRUSTED_UIDS": "0"})
    assert agent.take(Registry="", TrustedUids="", QueueLimit="") == []
    assert agent.take(Registry="", TrustedUids="5", QueueLimit="") == [
        "TrustedUids is '5' now; it takes effect when the component starts again."
    ]


def test_what_the_component_does_not_have_stays_as_it_was_started(caplog):
    """A component of somebody's own recipe need not have our keys."""
    agent = Agent(caplog, {"EDGE_AGENT_QUEUE_LIMIT": "5"})
    assert agent.take(Unrelated="1") == []
    assert agent.settings.queue_limit == 5


def test_flags_win(caplog):
    agent = Agent(caplog, {}, flags={"queue_limit": "5"})
    assert agent.take(QueueLimit="3") == ["QueueLimit is '3' now, which changes nothing while the agent runs."]
    assert agent.settings.queue_limit == 5
    assert agent.adopted == []


def test_the_file_is_what_an_empty_value_leaves(caplog, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("queue_limit: 7\ndrain_timeout: 2.5\n")
    agent = Agent(caplog, {"EDGE_AGENT_QUEUE_LIMIT": "5"}, file)
    file.write_text("queue_limit: 1\n")  # what was read at the start counts
    agent.take(QueueLimit="")
    assert agent.settings.queue_limit == 7
    assert agent.settings.drain_timeout == 2.5


def test_a_change_that_cannot_count_now_is_not_smuggled_in_with_one_that_can(agent):
    agent.take(MaxCalls="2", Slots="3")
    agent.take(MaxCalls="2", Slots="3", QueueLimit="4")
    [adopted] = agent.adopted
    assert (adopted.queue_limit, adopted.max_calls, adopted.slots) == (4, 64, 1)


def test_of_a_single_model_only_what_can_change_does(agent):
    told = agent.take(ModelSettings='{"board": {"queue_limit": 2, "slots": 4, "call_timeout": 3, "memory": "1GiB"}}')
    assert len(told) == 1
    assert told[0].endswith(f" now; {LIVE['model_settings']}.")
    own = agent.adopted[-1].model_settings["board"]
    assert (own.queue_limit, own.call_timeout, own.memory, own.slots) == (2, 3, 1 << 30, None)
    agent.take(ModelSettings="")
    assert agent.adopted[-1].model_settings == {}


def test_a_model_keeps_what_it_was_started_with(caplog):
    started = '{"board": {"slots": 4, "queue_limit": 2}}'
    agent = Agent(caplog, {"EDGE_AGENT_MODEL_SETTINGS": started})
    assert agent.take(ModelSettings=started) == []
    agent.take(ModelSettings={"board": {"slots": 8}, "part": {"queue_limit": 0}})
    models = agent.settings.model_settings
    assert (models["board"].slots, models["board"].queue_limit) == (4, None)
    assert agent.settings.of_model("board", "queue_limit") == 16
    assert agent.settings.of_model("part", "queue_limit") == 0


def test_single_models_of_which_nothing_can_change_now(agent):
    assert agent.take(ModelSettings={"board": {"slots": 8}}) == [
        'ModelSettings is \'{"board": {"slots": 8}}\' now, which changes nothing while the agent runs.'
    ]


def test_the_environment_of_the_process_stays_as_it_is(monkeypatch, caplog):
    monkeypatch.setenv("EDGE_AGENT_QUEUE_LIMIT", "5")
    agent = Live(config.load(), lambda _: None)
    agent.take({"QueueLimit": "3"})
    assert live.os.environ["EDGE_AGENT_QUEUE_LIMIT"] == "5"
    assert config.load().queue_limit == 5
    assert agent.settings.queue_limit == 3
