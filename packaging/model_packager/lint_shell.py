"""How a shell script comes to its end, told from its text.

Good for scripts as they stand in recipes: short, and without functions, whose braces nucleus lite does not let through.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

End = Literal["exec", "exit", "perhaps", "command"]

_PIECE = re.compile(
    r"(?P<joined>\\\n)"
    r"|(?P<quoted>\\.|'[^']*'|\"[^\"\\]*(?:\\.[^\"\\]*)*\"|`[^`]*`)"
    r"|(?P<comment>(?<![^\s;&|()])\#[^\n]*)"
    r"|(?P<opened>\$?\()|(?P<closed>\))|(?P<bare>.)",
    re.DOTALL,
)
_DOCUMENT = re.compile(r"(?<!<)<<-?[ \t]*['\"\\]?([A-Za-z_]\w*)")
_REDIRECTION = re.compile(r"(?<![0-9])[0-9]*(?:&>|<>|<<|>>|[<>])[-&|]?[ \t]*[^\s<>;&|()]*")
_OPERATOR = re.compile(r"(&&|\|\||;;|[;&|\n()])")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_JOINS = {"&&", "||", "|"}
# In a process of its own, which leaves the script's alone.
_APART = {"&", ")", "|"}
_OPENERS = {"if", "then", "elif", "else", "while", "until", "do", "!", "{"}
_CLOSERS = {"fi", "done", "esac", "}"}


@dataclass
class _Command:
    """A simple command: its words without redirections, and the operators up to the next one."""

    words: list[str]
    after: set[str] = field(default_factory=set)


def end(script: str) -> End:
    """Return what a script ends with: `exec` of a program in the shell's place, `exit`, or another command.

    `perhaps` it is none of these: a loop that may be endless, or an `exit` on one way only.

    What comes last on some way through an `if`, a `case`, `&&` or `||` may be the `exec`. A bare redirection is none, nor
    is an `exec` in a pipe, in the background or in a subshell.
    """
    commands = _commands(_REDIRECTION.sub(" ", _bare(script)))
    closers = []
    while commands and commands[-1].words[0] in _CLOSERS:
        closers.append(commands.pop())
    if not commands or any(one.after & _APART for one in closers):
        return "command"
    chain = [commands.pop()]
    while commands and commands[-1].after & _JOINS:
        chain.insert(0, commands.pop())
    piped = [False, *("|" in one.after for one in chain)]
    if any(_takes_over(one) and not after_pipe for one, after_pipe in zip(chain, piped, strict=False)):
        return "exec"
    exits = len(chain) == 1 and _plain(chain[0])[0] == "exit" and not chain[0].after & _APART
    if closers and (exits or closers[0].words[0] == "done"):
        return "perhaps"
    return "exit" if exits else "command"


def _takes_over(command: _Command) -> bool:
    """Return whether a command is an `exec` of a program in the script's own process."""
    words = _plain(command)
    return words[0] == "exec" and len(words) > 1 and not command.after & _APART


def _plain(command: _Command) -> list[str]:
    """Return the words of a command without what leads to it, or only the last one."""
    words = list(command.words)
    while len(words) > 1 and (words[0] in _OPENERS or _ASSIGNMENT.match(words[0])):
        words.pop(0)
    return words


def _commands(bare: str) -> list[_Command]:
    found: list[_Command] = []
    parts = [*_OPERATOR.split(bare), ""]
    for text, operator in zip(parts[::2], parts[1::2], strict=True):
        if words := text.split():
            found.append(_Command(words))
        if found:
            found[-1].after.add(operator)
    return found


def _bare(script: str) -> str:
    """Return a script without comments and here-documents, with `_` for what is quoted or substituted."""
    kept, depth = [], 0
    for piece in _PIECE.finditer("\n".join(_without_documents(script))):
        kind = piece.lastgroup
        if depth:
            depth += (kind == "opened") - (kind == "closed")
        elif kind == "quoted" or piece[0] == "$(":
            kept.append("_")
            depth = int(kind == "opened")
        elif kind not in {"joined", "comment"}:
            kept.append(piece[0])
    return "".join(kept)


def _without_documents(script: str) -> Iterator[str]:
    """Yield the lines of a script but for its here-documents."""
    ends: list[str] = []
    for line in script.split("\n"):
        if not ends:
            yield line
            ends = _DOCUMENT.findall(line)
        elif line.lstrip("\t") == ends[0]:
            ends.pop(0)
