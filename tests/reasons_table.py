"""Why calls fail, as the metrics and the status count them: the README's table, with a row for each error that there is."""

from edge_agent import errors
from edge_agent.exporter.reasons import kinds

CLIENT, LOAD, BACKEND, OPERATOR, AGENT = "client", "load", "backend", "operator", "agent"
# What the error means for who reads the metrics, and whose matter it is.
ROWS: dict[type[errors.EdgeAgentError], tuple[str, str]] = {
    errors.InvalidArgument: ("something in the request can never work: the answer names the argument", CLIENT),
    errors.InvalidName: ("`model_component` can be no component's name; counted under no model", CLIENT),
    errors.ModelNotFound: ("no such component is deployed; counted under no model", f"{CLIENT}, or {OPERATOR}"),
    errors.WrongState: ("the model's state does not allow the call, as before StartModel", f"{CLIENT}, or {OPERATOR}"),
    errors.CannotKeepUp: ("a limit on calls in hand was reached, and the call was turned away at once", LOAD),
    errors.Expired: ("the deadline passed, or the caller cancelled or went away, before the model had begun", LOAD),
    errors.NotEnoughMemory: ("no memory to load the model, or none left in /dev/shm for a mask", OPERATOR),
    errors.InferenceFailed: ("the model failed on an image that was in order", BACKEND),
    errors.WorkerCrashed: ("the model's worker process died under the call, or was ended with the agent", BACKEND),
    errors.InferenceHung: ("the model did not answer within `call_timeout`, and was ended", BACKEND),
    errors.EdgeAgentError: ("the agent itself failed, or can open no more files: its log has the cause", AGENT),
}


def reasons() -> str:
    """Return the table as Markdown; raise KeyError for an error that has no row."""
    there = set(kinds())
    if gone := set(ROWS) - there:
        raise KeyError(f"No error any more: {sorted(one.__name__ for one in gone)}")
    if new := there - set(ROWS):
        raise KeyError(f"No row for {sorted(one.__name__ for one in new)}")
    rows = ["| `reason` | meaning | whose matter | `code` |", "|---|---|---|---|"]
    rows += [f"| `{one.reason}` | {means} | {whose} | {one.code.name} |" for one, (means, whose) in ROWS.items()]
    return "\n".join(rows) + "\n"
