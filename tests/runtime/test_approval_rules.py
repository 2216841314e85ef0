"""What needs no consent: only what is proved to run one program with the arguments that are read; asked of a real bash."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from amplifier_core.hooks import HookRegistry
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from amplifier_api_server.runtime.modules import hooks_approval
from amplifier_api_server.runtime.modules.hooks_approval import rules

BASH = shutil.which("bash")
DEFAULTS = [rules.Rule.of(one) for one in rules.DEFAULT_RULES]

LET_THROUGH = [
    "ls",
    "ls -l",
    "pwd",
    "echo",
    "  ls   -la src/a.py  ",
    "echo hello, world",
    "echo 'two words' \"and two\" mid' 'dle",
    "ls --color=never ../other",
    '"ls" -l',
]

ATTACKS = [
    # What a prompt expansion decodes is run: \044 is a dollar sign, \140 a backquote.
    r"echo ${x:='\044(id)'} ${x@P}",
    r"echo ${x:='\140id\140'} ${x@P}",
    r"echo ${x:='\073id'} ${x@P}",
    "echo ${x:=$'\\x24(id)'} ${x@P}",
    "echo ${PS4@P} $[$(id)]",
    "echo $((a[$(id)]))",
    "ls $(id)",
    "ls `id`",
    'ls "$(id)"',
    'echo "`id`"',
    "echo $HOME",
    "echo $'\\x41'",
    'echo $"x"',
    "echo <(id)",
    "echo >(id)",
    "echo x > y",
    "echo x 2>y",
    "echo x>|y",
    "echo x &>y",
    "echo <y",
    "echo <<E\nx\nE",
    "echo <<<x",
    "echo x; rm y",
    "echo x & rm y",
    "echo x && rm y",
    "echo x || rm y",
    "echo x | sh",
    "ls\nrm y",
    "ls\rrm y",
    "\nrm y",
    "ls\\\nx",
    "ls\trm",
    "ls\x00rm y",
    "ls\x0brm",
    "ls\x85rm y",
    "ls\u2028rm y",
    "ls\u00a0-l",
    "ls\uff1brm y",
    "\uff4c\uff53",
    "l\u0455",
    "ls -l\u202e",
    "pwd\n",
    "\u00a0pwd",
    "\ufeffls",
    "ls *",
    "ls ?",
    "ls [a-z]",
    "ls {a,b}",
    "echo {1..9}",
    "ls ~",
    "ls ~root/x",
    "echo !!",
    "echo !rm",
    "! ls",
    "echo x # y",
    "ls ^x",
    "echo a\\;b",
    "echo 'unended",
    'echo "unended',
    "echo 'a'\\''b'",
    'echo "a\\"; rm y"',
    "X=1 ls",
    "PATH=. ls",
    "PATH=.:/bin ls -l",
    "LD_PRELOAD=./x.so ls",
    "BASH_ENV=x ls",
    "X+=1 ls",
    "ls=1",
    "ls()(id)",
    "ls() { id; }; ls",
    "function ls { id; }",
    "(ls)",
    "{ ls; }",
    "time ls",
    "exec ls",
    "command ls",
    "env ls",
    "if ls",
    "ls/x.sh",
    "ls/",
    "./ls",
    "/bin/ls",
    "lsfoo",
    "lsblk",
    "lsattr x",
    "echoes",
    "echo.sh",
    "echo-all",
    "echo=x",
    "echo:x",
    "pwd -P",
    "pwdx 1",
    "pwd2",
    "LS",
    "Echo x",
    "'ls -l'",
    "'ls ' -l",
    '"pwd "',
    "''ls''x",
    "''",
    "",
    "-ls",
    "alias ls=id",
    "find . -exec id",
    "tee x",
    "git -c core.pager=id log",
]


@pytest.mark.parametrize("command", LET_THROUGH)
def test_plain_words_of_a_harmless_program_need_no_consent(command: str):
    assert rules.decide(DEFAULTS, command) == "allow"


@pytest.mark.parametrize("command", ATTACKS)
def test_whatever_a_shell_might_read_otherwise_needs_consent(command: str):
    assert rules.decide(DEFAULTS, command) == "ask"


@pytest.mark.parametrize("command", [None, 1, ["ls"], {"ls": 1}, b"ls", True])
def test_what_is_no_text_needs_consent(command: Any):
    assert rules.decide(DEFAULTS, command) == "ask"


@pytest.mark.parametrize(
    ("pattern", "let_through", "asked"),
    [
        ("git status", ["git status", "git  status", "git 'status'"], ["git status -s", "git statusx", "git"]),
        ("git status*", ["git status", "git status -s"], ["git statusx", "git status-all", "git", "gitstatus"]),
        ("git log *", ["git log", "git log -1 a.py"], ["git -c x=y log", "git logs", "git log;id", "git log $x"]),
        ("./check.sh*", ["./check.sh", "./check.sh a"], ["./check.sh/x", "check.sh", "./check.shx"]),
        ("*", [], ["ls", "rm -rf x", ""]),
        ("l*s", [], ["ls", "lxs"]),
        ("cat *.md", [], ["cat a.md", "cat a.md b; id .md"]),
        ("X=1 ls*", [], ["X=1 ls"]),
        ("time *", [], ["time ls"]),
        ("make ~*", [], ["make ~"]),
    ],
)
def test_a_pattern_means_whole_words_and_a_star_further_ones(pattern: str, let_through: list[str], asked: list[str]):
    one = [rules.Rule.of({"pattern": pattern, "action": "auto_approve"})]
    assert {command: rules.decide(one, command) for command in let_through} == dict.fromkeys(let_through, "allow")
    assert {command: rules.decide(one, command) for command in asked} == dict.fromkeys(asked, "ask")


@pytest.mark.parametrize(
    ("pattern", "command"),
    [
        ("*sudo*", "echo x && sudo y"),
        ("git push*", "git push"),
        ("git push*", "GIT push origin"),
        ("git push*", "git   push"),
        ("git push*", "git 'push'"),
        ("git push*", "git\tpush; id"),
        ("*a*a*b", "aXaXb"),
        ("*", "anything $(at all)"),
    ],
)
def test_a_rule_refuses_before_a_later_one_lets_through(pattern: str, command: str):
    said = [{"pattern": pattern, "action": "auto_deny"}, {"pattern": "git*", "action": "auto_approve"}]
    assert rules.decide([rules.Rule.of(one) for one in said], command) == "deny"


@pytest.mark.parametrize("command", ["a" * 100_000 + ";", "'" * 99_999, "a " * 50_000 + ";", '"a' * 50_000 + "|"])
def test_a_command_of_any_length_is_read_once(command: str):
    said = [{"pattern": "*a" * 40 + "*x", "action": "auto_deny"}, *rules.DEFAULT_RULES]
    assert rules.decide([rules.Rule.of(one) for one in said], command) == "ask"  # it would take years if it backtracked


class Coordinator:
    def __init__(self) -> None:
        self.hooks = HookRegistry()
        self.session_state: dict[str, Any] = {}


async def answer(tool: str, tool_input: Any, config: Mapping[str, Any] | None = None) -> Any:
    """What core makes of a call, with the default rules."""
    coordinator = Coordinator()
    await hooks_approval.mount(coordinator, dict(config or {}))
    return await coordinator.hooks.emit("tool:pre", {"tool_name": tool, "tool_input": tool_input})


@pytest.mark.parametrize("tool_input", [["ls"], "ls", 5, [[]]])
async def test_a_call_that_the_hook_can_not_read_does_not_run(tool_input: Any):
    assert (await answer("bash", tool_input)).action == "deny"


async def test_no_rule_speaks_of_another_tool_than_bash():
    say = {"rules": [{"pattern": "ls*", "action": "auto_approve"}]}
    for tool, tool_input in (
        ("write_file", {"file_path": "ls", "content": "x"}),
        ("write_file", {"command": "ls", "file_path": "/etc/x", "content": "x"}),
        ("edit_file", {"command": "pwd"}),
        ("apply_patch", {"command": "pwd"}),
    ):
        assert (await answer(tool, tool_input, say)).action == "ask_user"
    assert (await answer("own", {"command": "ls"}, {"tools": {"own": {"require_approval": True}}})).action == "ask_user"


async def test_a_person_sees_all_that_the_tool_is_given_or_its_digest():
    first = await answer("write_file", {"file_path": "notes.md", "content": "one"})
    assert first.approval_prompt == 'write_file: notes.md\n{"content": "one"}'
    asked = [await answer("write_file", {"file_path": "a", "content": "x" * 5_000 + end}) for end in "ab"]
    assert asked[0].approval_prompt != asked[1].approval_prompt
    hidden = await answer("bash", {"command": "rm x", "timeout": 5, "also": "y"})
    assert hidden.approval_prompt == 'bash: rm x\n{"also": "y"}'


async def test_characters_that_do_not_show_are_written_out():
    asked = await answer("bash", {"command": "rm \u202egpj.x\u200b\x1b[2K"})
    assert asked.approval_prompt.endswith("rm \\u202egpj.x\\u200b\\u001b[2K")
    literal = await answer("bash", {"command": "rm \\u202egpj.x\\u200b\\u001b[2K"})
    assert asked.approval_prompt != literal.approval_prompt  # "Allow always" holds for one of them alone


# Asked of a real bash: what is let through runs its program alone, with these very arguments


class Recorder:
    """A folder whose only programs write down how they were called; bash is told to have no built-in of their names."""

    def __init__(self, folder: Path) -> None:
        self.log, self.cwd, programs = folder / "log", folder / "cwd", folder / "programs"
        self.cwd.mkdir()
        programs.mkdir()
        (self.cwd / "a").write_text("")  # something for a glob to find
        for name in ("ls", "pwd", "echo"):
            (programs / name).write_text(
                '#!/bin/sh\n{ printf "%s" "${0##*/}"; for word; do printf "\\1%s" "$word"; done; echo; } >> "$LOG"\n'
            )
            (programs / name).chmod(0o755)
        setup = folder / "setup"
        setup.write_text('enable -n echo pwd; command_not_found_handle() { printf "?%s\\n" "$*" >> "$LOG"; }\n')
        self._environment = {"PATH": str(programs), "BASH_ENV": str(setup), "LOG": str(self.log), "HOME": "/home/x"}

    def ran(self, command: str) -> list[list[str]]:
        """The calls that it led to, each as its words. Files that it made count as one."""
        self.log.write_text("")
        assert BASH is not None
        done = subprocess.run(
            [BASH, "-c", command],
            cwd=self.cwd,
            env=self._environment,
            capture_output=True,
            timeout=10,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        made = [["?file", name] for name in os.listdir(self.cwd) if name != "a"]
        said = [["?said", str(done)]] if done.stdout or done.stderr or done.returncode else []
        return [line.split("\1") for line in self.log.read_text().splitlines()] + made + said


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    if BASH is None:
        pytest.skip("there is no bash")
    with tempfile.TemporaryDirectory(prefix="rules-") as folder:
        yield Recorder(Path(folder))


@pytest.mark.parametrize("command", LET_THROUGH)
def test_what_needs_no_consent_runs_as_it_was_read(recorder: Recorder, command: str):
    assert recorder.ran(command) == [list(rules.plain_words(command) or ())]


def test_every_character_that_needs_no_consent_means_itself_wherever_it_stands(recorder: Recorder):
    """All of ASCII, twice over, alone and at each end of a word: what is let through of it is run as it was read."""
    one_by_one = [chr(code) for code in range(1, 128)]
    words = [*one_by_one, *(f"{one}a" for one in one_by_one), *(f"a{one}" for one in one_by_one)]
    words += [a + b for a, b in itertools.product("=:~-%+@,./'\"!#*?[{", repeat=2)]
    plain = [word for word in words if rules.decide(DEFAULTS, f"echo {word}") == "allow"]
    assert len(plain) > 200
    (ran,) = recorder.ran("echo " + " ".join(plain))
    assert ran == list(rules.plain_words("echo " + " ".join(plain)) or ())


PIECES = ["ls", "echo", "pwd", "a", "-l", "x=1", "a b", "@P", "\\044(a)", "${x:=", "}", "$(", ")", "in", "do", "time"]
HOSTILE = st.lists(st.sampled_from([*PIECES, *" \t\n'\"`\\$&|;<>(){}[]*?~!#%^=:,+-./\x00é\u2028"]), max_size=8)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(program=st.sampled_from(["ls", "echo", "pwd", "l", ""]), rest=HOSTILE, spaces=st.booleans())
def test_whatever_is_let_through_runs_that_program_with_these_arguments(
    recorder: Recorder, program: str, rest: list[str], spaces: bool
):
    command = (program + " " if spaces else program) + "".join(rest)
    decision = rules.decide(DEFAULTS, command)
    event(decision)
    if decision == "allow":
        words = rules.plain_words(command)
        assert words
        assert words[0] in ("ls", "echo", "pwd")
        assert recorder.ran(command) == [list(words)]
