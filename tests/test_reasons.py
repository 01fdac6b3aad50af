"""The table of reasons has all that a call can fail with, and agrees with what the agent takes for its callers' faults."""

import pytest

import reasons_table
from edge_agent import errors
from edge_agent.exporter import reasons
from edge_agent.metrics import OF_CALLERS

LISTED = [
    tuple(cell.strip(" `") for cell in line.strip("|").split("|")) for line in reasons_table.reasons().splitlines()[2:]
]


def test_each_is_there_once():
    told = [(reason, code) for reason, _, _, code in LISTED]
    assert sorted(told) == sorted({(one.reason, one.code.name) for one in reasons.kinds()})


def test_whatever_detections_are_counted_by_is_there():
    told = {(code, reason) for reason, _, _, code in LISTED}
    assert {*reasons.OF_A_MODEL, *reasons.OF_NO_MODEL} - {("OK", "")} == told


def test_a_fault_of_callers_is_one_in_both():
    """What is kept apart from a model's own faults is what the table lays to clients and their load."""
    theirs = {reason for reason, _, whose, _ in LISTED if whose.split(",")[0] in {"client", "load"}}
    assert theirs == OF_CALLERS


def test_an_error_without_a_row_is_noticed(monkeypatch):
    monkeypatch.setattr(reasons_table, "kinds", lambda: [*reasons.kinds(), type("Odd", (errors.EdgeAgentError,), {})])
    with pytest.raises(KeyError, match="No row for.*Odd"):
        reasons_table.reasons()


def test_a_row_without_an_error_is_noticed(monkeypatch):
    monkeypatch.setattr(reasons_table, "kinds", lambda: [one for one in reasons.kinds() if one is not errors.Expired])
    with pytest.raises(KeyError, match="No error any more.*Expired"):
        reasons_table.reasons()
