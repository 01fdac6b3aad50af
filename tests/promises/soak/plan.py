"""What is called in the soak: a thousand calls at a time, whose kinds are counted and whose order is left to chance."""

from random import Random

EPOCH = 1_000
LARGE, MALFORMED, KILLED = 1, 20, 10
LARGE_SIDE = 4096
# Model -> the sides of its frames, and its part of the calls. The first is stopped and started all the time.
CHURNED, ANY, MIDDLE, WIDE = "churned", "any", "middle", "wide"
SIDES = {CHURNED: [64], ANY: [64, 101, 128, 222, 320, 512], MIDDLE: [256], WIDE: [512]}
PARTS = {CHURNED: 0.20, ANY: 0.45, MIDDLE: 0.25, WIDE: 0.10}
WAYS = ("inline", "shared", "masked")
WRONG_WAYS = ("garbage", "nobody", "short", "beyond", "missing", "no bitmap")
# Seconds, at most, from the begin of a call to the death of who made it.
LATEST = 0.003

# A model, the side of the image, or 0 for a malformed call, its way, and the seconds until its client is killed, or 0.
Call = tuple[str, int, str, float]


def epoch(random: Random, number: int, lanes: int) -> list[list[Call]]:
    """Return the calls of an epoch for each lane; the last of a lane kills nobody."""
    names = random.choices(list(PARTS), PARTS.values(), k=EPOCH - LARGE - MALFORMED)
    calls: list[Call] = [(name, random.choice(SIDES[name]), _way(random, name), 0) for name in names]
    calls += [(ANY, LARGE_SIDE, large_way(number), 0)] * LARGE
    calls += [(ANY, 0, WRONG_WAYS[nth % len(WRONG_WAYS)], 0) for nth in range(MALFORMED)]
    random.shuffle(calls)
    may_die = [place for place, call in enumerate(calls[:-lanes]) if 0 < call[1] < LARGE_SIDE]
    for place in random.sample(may_die, KILLED):
        calls[place] = (*calls[place][:3], random.uniform(1e-6, LATEST))
    return [calls[lane::lanes] for lane in range(lanes)]


def large_way(number: int) -> str:
    """Return the way of the large frames of an epoch: inline in one, shared in the next."""
    return WAYS[number % 2]


def _way(random: Random, model: str) -> str:
    return random.choice(WAYS[:2] if model == ANY else WAYS)
