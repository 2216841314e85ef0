"""What the rules of `hooks-approval` say of a shell command: let it through, refuse it, or ask a person.

Owns the reading of a rule and of a command. Invariant: what is let through runs exactly one program, which the rule names
as a whole word, with exactly the arguments that are read here. Nothing is let through because nothing bad was found in
it: every character has to be one that means itself in a shell, and what can't be read so is asked for.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

log = logging.getLogger(__name__)

Decision = Literal["allow", "deny", "ask"]

ACTIONS = ("auto_approve", "auto_deny")
# ls, pwd and echo have no option that writes a file or runs a program. Hardly any other program can say that:
# find has -exec, sort -o, git -c, grep reads FIFOs, and env, xargs or tee are made for it.
DEFAULT_RULES: tuple[Mapping[str, str], ...] = (
    {"pattern": "ls*", "action": "auto_approve"},
    {"pattern": "pwd", "action": "auto_approve"},
    {"pattern": "echo*", "action": "auto_approve"},
)

_PLAIN = "A-Za-z0-9_./=:,+@%-"  # means itself anywhere in a word, in bash and in every POSIX shell
# Possessive, so that a long command that is none costs no more than one look at each of its characters.
_WORD = re.compile(rf"""(?:[{_PLAIN}]++|'[ {_PLAIN}]*+'|"[ {_PLAIN}]*+")++""")
_COMMAND = re.compile(rf" *+{_WORD.pattern}(?: ++{_WORD.pattern})*+ *+")
_PROGRAM = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*")  # no `=`: that would be an assignment
# "XCU 2.4 Reserved Words" of POSIX.1-2017, and bash's own: in a program's place they are grammar, no programs.
_RESERVED = frozenset(
    "if then else elif fi do done case esac while until for in select function time coproc".split()  # noqa: SIM905
)


def plain_words(command: str) -> tuple[str, ...] | None:
    """The program and the arguments that a shell makes of `command`; None where they are not plain to see.

    One line of words between spaces. A word has letters, digits and `_./=:,+@%-`, or those and spaces in quotes.
    """
    if _COMMAND.fullmatch(command) is None:
        return None
    words = tuple(re.sub("['\"]", "", word) for word in _WORD.findall(command))
    return words if _PROGRAM.fullmatch(words[0]) and words[0] not in _RESERVED else None


@dataclass(frozen=True, slots=True)
class Rule:
    """`named` is what an auto_approve rule lets through: these words, and any arguments behind them where it ends in `*`.

    Where its pattern is not plain it lets nothing through, which is told in the log.
    """

    pattern: str
    is_letting: bool
    named: tuple[str, ...] | None = None

    @classmethod
    def of(cls, told: Any) -> Rule:
        """Raises ValueError."""
        if not isinstance(told, Mapping) or not told.get("pattern") or told.get("action") not in ACTIONS:
            raise ValueError(f"hooks-approval: a rule is {told!r:.100}; it should have pattern and action")
        pattern, is_letting = str(told["pattern"]), told["action"] == "auto_approve"
        named = plain_words(pattern.removesuffix("*")) if is_letting else None
        if is_letting and named is None:
            log.warning(
                "hooks-approval: the rule %.100r lets nothing through: it should name a program, and arguments if need be,"
                " by plain words, with at most one * at its end",
                pattern,
            )
        return cls(pattern, is_letting, named)

    def lets_through(self, words: tuple[str, ...]) -> bool:
        if self.named is None:
            return False
        return words[: len(self.named)] == self.named if self.pattern.endswith("*") else words == self.named

    def refuses(self, command: str, words: tuple[str, ...] | None) -> bool:
        """By its text as it is, with single spaces, or as its words are read, whatever the case of its letters."""
        spellings = {command.strip(), " ".join(command.split()), " ".join(words or ())}
        return any(_fits(self.pattern.casefold(), one.casefold()) for one in spellings if one)


def decide(rules: Iterable[Rule], command: Any) -> Decision:
    """The first rule that fits."""
    if not isinstance(command, str):
        return "ask"
    words = plain_words(command)
    for rule in rules:
        if not rule.is_letting:
            if rule.refuses(command, words):
                return "deny"
        elif words is not None and rule.lets_through(words):
            return "allow"
    return "ask"


def _fits(pattern: str, text: str) -> bool:
    """Whether `text` is `pattern`, in which `*` stands for any text. Linear: a rule must not stall its runtime."""
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    *middle, last = rest
    at, end = len(first), len(text) - len(last)
    if not text.startswith(first) or not text.endswith(last) or at > end:
        return False
    for part in middle:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
