"""What is deployed of one model, and what is to follow it where the package on disk has changed since."""

import logging
from collections.abc import Callable, Collection

from edge_agent import packages
from edge_agent.lifecycle import State
from edge_agent.packages import Found, Signature

logger = logging.getLogger(__name__)

# What to do, where a cause says so itself: it is told once.
AGAIN = "start the model again"


class Deployment:
    """What is deployed of a model, and what is to follow it.

    It has neither a lock nor a thread of its own: the lock of the model that owns it must be held in every call, and while
    anything is assigned. Only `found` may be read without.
    """

    def __init__(self, found: Found) -> None:
        # The package that is deployed: the one that is loaded, while one is.
        self.found = found
        # The one that is to follow it.
        self.waiting: Found | None = None
        # What else operators should know of it, in sentences.
        self.notes: tuple[str, ...] = ()
        # The package that could not take over, and why.
        self._not_swapped: tuple[Signature, str] = ((), "")

    def take(self, found: Found) -> State:
        """Deploy a package where nothing uses the one before; return the state that it begins in, FAILED where it is broken."""
        self.replace(found)
        state = State.FAILED if found.refusal else State.STOPPED
        level = logging.WARNING if found.refusal else logging.INFO
        why = f": {found.refusal}" if found.refusal else ""
        told = found.name, found.version, state.name, found.folder, why
        logger.log(level, "%s: version %s deployed, %s, from %s%s", *told)
        return state

    def replace(self, found: Found) -> None:
        """Go on with another package, or with the same one as it is by now; nothing follows it yet."""
        self.found, self.waiting = found, None

    def begin(self, found: Found) -> None:
        """Go on with the package that a start has read; whatever could not take over before may be tried again."""
        self.replace(found)
        self._not_swapped = (), ""

    def rename(self, found: Found) -> bool:
        """Return whether a package that was accepted is the deployed one, and only its source is another, which is noted."""
        same = _renamed(found, self.found)
        if same:
            self.found = found
        return same

    def cannot_take_over(self, found: Found, reason: str) -> None:
        """Note why a package that is to follow cannot: it is not tried again as long as it stays the same."""
        self._not_swapped = found.signature, reason

    def why_not(self, found: Found) -> str:
        """Return why a package cannot follow, empty where nothing is known of that."""
        return found.refusal or (self._not_swapped[1] if self._not_swapped[0] == found.signature else "")

    def waits(self, found: Found) -> bool:
        """Return whether a package is the one that is to follow."""
        waiting = self.waiting
        return bool(waiting and (waiting.folder, waiting.signature) == (found.folder, found.signature))

    def told(self, state: State, detail: str) -> list[str]:
        """Return what operators should know of it, in sentences, where the model is in a state with such a `detail`."""
        notes = list(self.notes)
        # While it is STARTING there is nothing to do about that yet.
        if self.waiting and state is not State.STARTING:
            notes.insert(0, self._about(self.waiting, state, detail))
        if self.found.package and state is not State.FAILED:
            notes.extend(self.found.package.notes)
        return notes

    def _about(self, waiting: Found, state: State, detail: str) -> str:
        """Return what becomes of the package on disk."""
        changed = "The package on disk has changed since"
        if state is State.FAILED:
            return f"{changed}." if AGAIN in detail else f"{changed}; start the model to load it."
        if state is not State.RUNNING:
            return f"{changed}; it is loaded with the next start."
        if reason := self.why_not(waiting):
            return f"{changed}, and version {waiting.version} cannot take over: {reason} The one before goes on."
        return f"{changed}; version {waiting.version} is loaded beside the one before, and then takes over."


def is_it(found: Found, deployed: Found, moved: Callable[[Found], Found]) -> bool:
    """Return whether what a look found is the deployed package, be it only on disk by now, which is looked at.

    Looks settle later than a start reads, so what they have may be older than what is deployed. `moved` returns a package
    with the place that its models folder has this instant. No lock should be held: a disk may hang.
    """
    if found.called != deployed.called:
        return False
    if (found.folder, found.signature) == (deployed.folder, deployed.signature):
        return True
    try:
        now = packages.sign(deployed.folder, deployed.root)
    except OSError:
        return False
    return moved(found).folder == deployed.folder and now == deployed.signature


def files_are_there(found: Found) -> bool:
    """Return whether the files of a package are still where they were."""
    try:
        return packages.sign(found.folder, found.root) != ()
    except OSError:
        return False


def sources_note(others: Collection[Found]) -> tuple[str, ...]:
    """Return the sentence that names the sources whose package of the same name is not used."""
    return tuple(
        f"Version {other.version} of this component in {ascii(str(other.folder))[1:-1]} is ignored: another source had it first."
        for other in others
    )


def _renamed(found: Found, deployed: Found) -> bool:
    """Return whether a package that was accepted is the same as before, and only its source is another."""
    return (
        found.package is not None
        and deployed.package is not None
        and found.called != deployed.called
        and (found.folder, found.content, found.version) == (deployed.folder, deployed.content, deployed.version)
    )
