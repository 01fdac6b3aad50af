"""The page recipes/README.md taken apart: blocks, commands, quoted messages; and the texts of the source."""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.users import ROOT

PAGE = ROOT / "recipes" / "README.md"
TEXT = PAGE.read_text()
# By which a block of commands says that no test runs it.
NOT_RUN = "# Not run here: "
# What stands for anything, in shown output and in quoted messages.
ANYTHING, GAP = "...", "…"
# Characters of a text besides its gaps, from which on it is recognised by them.
ENOUGH = 20


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its lines, and the output that is shown below it, if any."""

    language: str
    text: str
    shown: str = ""

    @property
    def runs(self) -> bool:
        """Whether the commands are run by the tests as they stand."""
        return self.language == "sh" and not self.text.startswith(NOT_RUN)


def blocks(text: str = TEXT) -> list[Block]:
    """Return the page's blocks in order; output that is shown belongs to the commands right above it."""
    found: list[Block] = []
    end = 0
    for match in re.finditer(r"(?ms)^```(\w+)\n(.*?)^```$", text):
        language, content = match.groups()
        if language == "text":
            above = found.pop()
            assert above.runs, f"whose output is this? {content}"
            assert text[end : match.start()].strip() == ""
            found.append(Block(above.language, above.text, content))
        else:
            found.append(Block(language, content))
        end = match.end()
    return found


def calls(program: str) -> list[list[str]]:
    """Return each call of a program on the page, as its words after the program's own."""
    found = []
    for block in blocks():
        if block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line.partition(" | ")[0], comments=True)
                for place, word in enumerate(words):
                    if " " not in word and Path(word).name == program:
                        found.append([one for one in words[place + 1 :] if not one.startswith(">")])
                        break
    return found


def matches(shown: str, printed: str) -> bool:
    """Return whether something was printed as the page shows it, where three dots stand for anything."""
    pattern = ".*?".join(map(re.escape, shown.strip().split(ANYTHING)))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def messages() -> list[str]:
    """Return the messages that the page's last section quotes: texts of several words."""
    section = TEXT.partition("## Troubleshooting")[2]
    quoted = [one or two for one, two in re.findall(r"``(.+?)``|`([^`]+)`", section)]
    return [one for one in quoted if " " in one and not one.startswith("edge-agent ")]


def said(message: str, texts: list[str]) -> bool:
    """Return whether one of the source's texts has what is quoted, all of it and in this order, or says it with values."""
    parts = [one for one in message.split(GAP) if one.strip()]
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    return any(pattern.search(one) or _says(one, message) for one in texts)


def _says(text: str, message: str) -> bool:
    """Return whether a text whose gaps get values can be the message; one that is little more than gaps can be anything."""
    return len(text.replace(GAP, "")) > ENOUGH and bool(
        re.fullmatch(".+".join(map(re.escape, text.split(GAP))), message)
    )


def texts_of_the_source() -> list[str]:
    """Return what the agent, the packager and the scripts on the device can say, with a gap for each value."""
    found = []
    for folder in ("agent/edge_agent", "packaging/model_packager"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found += _texts(ast.parse(path.read_text()))
    for path in (*(ROOT / "recipes" / "agent").glob("*.sh"), *(ROOT / "packaging").rglob("*.sh")):
        found += path.read_text().splitlines()
    return found


def _texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(one.value if isinstance(one, ast.Constant) else GAP for one in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
