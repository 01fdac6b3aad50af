"""What the doctor found, one sentence each, and what follows for serving."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# `none` is no fault: it says what is not there, or could not be looked at.
Mark = Literal["ok", "none", "warn", "problem"]


@dataclass(frozen=True)
class Finding:
    """A sentence about one thing, under a section; a problem prevents serving, a warning does not. Both have a cure."""

    section: str
    label: str
    mark: Mark
    text: str
    cure: str = ""


@dataclass(frozen=True)
class Report:
    """All findings, in order, and the facts behind them, as JSON has them."""

    findings: tuple[Finding, ...]
    data: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        """Whether nothing prevents serving."""
        return not any(one.mark == "problem" for one in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return the report as one object; `problems` has what prevents serving first, then what else to mend."""
        faults = sorted(
            (one for one in self.findings if one.mark in {"warn", "problem"}), key=lambda one: one.mark != "problem"
        )
        problems = [{"text": one.text, "cure": one.cure, "prevents_serving": one.mark == "problem"} for one in faults]
        return {"ok": self.ok, **self.data, "problems": problems}
