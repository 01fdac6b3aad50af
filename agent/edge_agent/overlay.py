"""Pictures of a verdict for people: the image and its mask blended, and a legend that says what is to be seen."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from edge_agent.client import Detection
from edge_agent.errors import printable

WHITE = (255, 255, 255)
GREEN, RED = "#1E9E55", "#D93838"
PANEL, INK, MUTED = "#14181D", "#F4F6F8", "#A9B4BF"
# How much of the mask's colour is seen in an anomalous region; its outline is drawn opaque.
BLEND = 0.45
# The legend's text is this part of the image's shorter side, but never too small to read.
TEXT_SCALE, SMALLEST_TEXT = 1 / 24, 12


def draw(image: NDArray[np.uint8], detection: Detection, title: str = "") -> Image.Image:
    """Return the image, height x width x 3 (uint8), with its mask over it and the legend below.

    The legend gives prediction and confidence, and each anomaly type in its colour with its part of the image's area.
    """
    title = printable(title)  # a line break would be drawn, and cannot be measured
    blended = image if detection.mask is None else _blend(image, detection.mask)
    height, width = image.shape[:2]
    size = max(SMALLEST_TEXT, round(min(width, height) * TEXT_SCALE))
    types = [one for one in detection.anomalies if one.name != "background"]
    lines = 1 + len(types)
    pitch = round(size * 1.5)
    legend = pitch * lines + size
    picture = Image.new("RGB", (width, height + legend), PANEL)
    picture.paste(Image.fromarray(blended), (0, 0))
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size)
    colour = RED if detection.is_anomalous else GREEN
    pen.rectangle((0, height, width, height + max(2, size // 6)), colour)
    top = height + size // 2 + max(2, size // 6)
    verdict = "ANOMALOUS" if detection.is_anomalous else "NORMAL"
    pen.text((size, top), verdict, colour, font)
    told = f"confidence {detection.confidence:.1%}"
    pen.text((size * 1.6 + pen.textlength(verdict, font), top), told, INK, font)
    used = size * 2.2 + pen.textlength(verdict, font) + pen.textlength(told, font)
    if title and used + pen.textlength(title, font) + size < width:
        pen.text((width - size, top), title, MUTED, font, anchor="ra")
    for row, one in enumerate(types, 1):
        y = top + pitch * row
        pen.rounded_rectangle((size, y + size * 0.15, size * 1.9, y + size * 1.05), size // 5, one.hex_color)
        pen.text((size * 2.5, y), f"{printable(one.name)}  {one.total_percentage_area:.2%} of the image", INK, font)
    return picture


def _blend(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the image with each anomalous region tinted in its colour and outlined."""
    inside = (mask != WHITE).any(axis=2)
    tinted = image.copy()
    tinted[inside] = (image[inside] * (1 - BLEND) + mask[inside] * BLEND).astype(np.uint8)
    thickness = max(1, min(image.shape[:2]) // 300)
    core = inside.copy()
    for _ in range(thickness):
        core[1:] &= core[:-1].copy()
        core[:-1] &= core[1:].copy()
        core[:, 1:] &= core[:, :-1].copy()
        core[:, :-1] &= core[:, 1:].copy()
    edge = inside & ~core
    tinted[edge] = mask[edge]
    return tinted
