"""The colours of anomaly types in a mask, by class index."""

import colorsys

# The palette of Lookout for Vision, exact; index 0 is the background.
# fmt: off
FIELD = (
    "#FFFFFF", "#23A436", "#14A3B3", "#F76902", "#9380FF", "#BD10E0", "#467CE6", "#A09308",
    "#0094BD", "#CC7700", "#5856D6", "#D61CB0", "#007AFF", "#8A6E00", "#2CA02C", "#3182BD",
    "#E6550D", "#8269FF", "#FF2EDC", "#2532EA", "#7C9F1E", "#54A611", "#18A599", "#F6673C",
)
# fmt: on
MOST_CLASSES = 101
GOLDEN_RATIO = 0.6180339887498949


def colours(count: int) -> tuple[str, ...]:
    """Return `count` distinct colours as upper-case "#RRGGBB", at most 101; raise ValueError beyond."""
    if count > MOST_CLASSES:
        raise ValueError(f"{count} classes; there are colours for {MOST_CLASSES}")
    found = list(FIELD[:count])
    step = 0
    while len(found) < count:
        # Steps of the golden ratio spread hues evenly however many are taken; three shades keep neighbours apart.
        step += 1
        red, green, blue = colorsys.hsv_to_rgb(
            step * GOLDEN_RATIO % 1, (0.9, 0.6, 0.75)[step % 3], (0.85, 0.95, 0.55)[step % 3]
        )
        colour = f"#{round(red * 255):02X}{round(green * 255):02X}{round(blue * 255):02X}"
        if colour not in found:
            found.append(colour)
    return tuple(found)
