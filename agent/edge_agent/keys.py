"""Reading a JSON object strictly: each key is what it has to be, or the package is refused by naming it."""

from collections.abc import Mapping
from typing import Any

from edge_agent.errors import PackageRefused

LARGEST_SIDE = 16384
LARGEST_NUMBER = 3e38


def mapping(value: object, place: str) -> dict[str, Any]:
    """Return the object that a value has to be."""
    if not isinstance(value, dict):
        raise PackageRefused(f"{place} is not an object.")
    return value


class Keys:
    """A JSON object and where it stands; reads a key as what it has to be or refuses the package by naming it."""

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        self.values = values
        self.place = place

    def has(self, key: str) -> bool:
        """Return whether the key is there and not null."""
        return self.values.get(key) is not None

    def section(self, key: str) -> "Keys":
        """Return the object at the key, an empty one where there is none."""
        return Keys(mapping(self.values.get(key) or {}, key), key)

    def take(self, key: str, kind: type) -> Any:
        """Return the value at the key; refuse one that is missing or of another type."""
        if not self.has(key):
            raise PackageRefused(f"{self.place} lacks {key}.")
        value = self.values[key]
        if not isinstance(value, kind):
            raise PackageRefused(f"{self.place}.{key} is {value!r:.80}; that is not what it has to be.")
        return value

    def text(self, key: str) -> str:
        """Return the text at the key."""
        return str(self.take(key, str))

    def flag(self, key: str) -> bool:
        """Return the true or false at the key, false where there is none."""
        return bool(self.take(key, bool)) if self.has(key) else False

    def number(self, key: str) -> float:
        """Return the finite number at the key."""
        value = self.take(key, (int, float))  # type: ignore[arg-type]
        # Verdicts are computed in float32, so a number has to be one there.
        if isinstance(value, bool) or not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
            raise PackageRefused(f"{self.place}.{key} is {value!r:.80}; it must be a finite number.")
        return float(value)

    def side(self, key: str) -> int:
        """Return the size in pixels at the key."""
        return self._side(self.take(key, int), key)

    def sizes(self, key: str, count: int) -> tuple[int, ...]:
        """Return the list of `count` sizes in pixels at the key."""
        values = self.take(key, list)
        if len(values) != count:
            raise PackageRefused(f"{self.place}.{key} is {values!r:.80}; it needs {count} numbers.")
        return tuple(self._side(value, key) for value in values)

    def ids(self, key: str) -> tuple[int, ...]:
        """Return the list of class indices at the key."""
        values = self.take(key, list)
        if not all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values):
            raise PackageRefused(f"{self.place}.{key} is {values!r:.80}; it must be a list of class indices.")
        return tuple(values)

    def _side(self, value: object, key: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_SIDE:
            raise PackageRefused(
                f"{self.place}.{key} has {value!r:.80}; a size must be a whole number from 1 to {LARGEST_SIDE}."
            )
        return value
