"""The documentation agrees with the code: settings, error codes, events, metrics and links, each in both directions.

What the code says is read from the code itself, by its syntax tree; what the docs say, from the first cell of tables' rows.
"""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import pytest
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel

from amplifier_api_server import control_plane
from amplifier_api_server.control_plane import settings
from amplifier_api_server.control_plane.errors import STATUS
from amplifier_api_server.control_plane.problem_codes import CODES
from amplifier_api_server.control_plane.telemetry import Telemetry
from amplifier_api_server.tenants import errors

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "amplifier_api_server"
EXAMPLE = DOCS / "config.example.yaml"

PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
MODULES = sorted(SOURCE.rglob("*.py"))


def first_cells(page: str, section: str | None = None) -> Iterator[str]:
    """The names in backticks in the first cell of each row of a page's tables, or of those below one heading."""
    heading = None
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("#").strip()
        elif line.startswith("|") and (section is None or heading == section):
            yield from re.findall(r"`([^`]+)`", line.split("|")[1])


def trees(*excluded: str) -> Iterator[ast.AST]:
    for path in MODULES:
        if path.relative_to(SOURCE).as_posix() not in excluded:
            yield ast.parse(path.read_text(encoding="utf-8"))


# Settings.


def leaves(section: type[BaseModel], prefix: str) -> Iterator[str]:
    """The names of all settings, as config.yaml nests them; [] marks what is in a list, {} what is in a mapping."""
    for name, field in section.model_fields.items():
        inner = list(models_in(field.annotation))
        if not inner:
            yield f"{prefix}{name}"
            continue
        mark = {"tuple": "[]", "dict": "{}"}.get(
            getattr(getattr(field.annotation, "__origin__", None), "__name__", ""), ""
        )
        if mark:
            yield f"{prefix}{name}"
        for one in inner:  # several, where a list holds things of several kinds
            yield from leaves(one, f"{prefix}{name}{mark}.")


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from models_in(argument)


def test_every_setting_is_documented_and_nothing_else():
    assert set(first_cells("configuration.md")) == set(leaves(settings.Settings, ""))


def is_as_documented(value: object, documented: str) -> bool:
    if isinstance(value, timedelta):
        return bool(settings.parse_duration(documented) == value)
    if re.fullmatch(r"\d+[KMG]iB", documented):
        return bool(settings.parse_size(documented) == value)
    if isinstance(value, tuple):
        return documented == "[" + ", ".join(map(str, value)) + "]"
    return documented == {"None": "none", "True": "true", "False": "false"}.get(str(value), str(value))


def test_defaults_are_documented_as_they_are():
    documented = {}
    for line in (DOCS / "configuration.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if line.startswith("| `"):
            documented[cells[1].strip("`")] = cells[3].strip("`")
    documented.pop("auth.methods")  # a list of one method, which its own rows describe
    sections = dict(settings.Settings())
    own = {
        name: documented[name]
        for section, values in sections.items()
        for name in (f"{section}.{one}" for one in type(values).model_fields)
        if name in documented
    }
    wrong = [name for name, text in own.items() if not is_as_documented(_value(sections, name), text)]
    assert wrong == []


def _value(sections: dict[str, BaseModel], name: str) -> object:
    section, _, setting = name.partition(".")
    return getattr(sections[section], setting)


def test_the_example_configuration_loads():
    loaded = settings.load(EXAMPLE, {})
    assert loaded.models.providers[0].name == "openai"


def test_the_example_shows_every_section():
    text = EXAMPLE.read_text(encoding="utf-8")
    assert [name for name in settings.Settings.model_fields if not re.search(rf"^{name}:", text, re.MULTILINE)] == []


# Error codes.

# A stand-in for a model provider: its codes are a provider's own, and reach a caller as one's would.
_OTHERS_CODES = ("control_plane/model_gateway/demo.py",)
# Where a code stands among a call's positional arguments.
_CODE_AT = {
    "BadRequest": 0,
    "Missing": 0,
    "Conflicting": 0,
    "TurnFailed": 0,
    "wrong": 0,
    "_end_with_error": 0,
    "Refusal": 1,
    "_refuse": 1,
    "Verdict": 3,
    "coded": 1,
    "problem": 1,
    "read_text": 2,
    "parse": 2,
}
_CODE_NAMES = {"code", "INVALID", "stable_code"}


def strings_of(value: ast.AST | None) -> Iterator[str]:
    """Text that a value can be, where it is written out."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.IfExp):
        yield from strings_of(value.body)
        yield from strings_of(value.orelse)
    elif isinstance(value, ast.BoolOp):
        for one in value.values:
            yield from strings_of(one)
    elif isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "str":
        yield from strings_of(value.args[0])
    elif isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "get":
        yield from strings_of(value.args[1] if len(value.args) > 1 else None)


def codes_in(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for keyword in node.keywords:
            if keyword.arg == "code":
                yield from strings_of(keyword.value)
        at = _CODE_AT.get(name)
        if at is not None and len(node.args) > at:
            yield from strings_of(node.args[at])
    elif isinstance(node, ast.Assign) and any(getattr(target, "id", "") in _CODE_NAMES for target in node.targets):
        yield from strings_of(node.value)
    elif isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "_CODES" for target in node.targets):
        for value in getattr(node.value, "values", ()):
            yield from strings_of(value)
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
        names = [getattr(target, "id", "") for target in node.targets[0].elts]
        if "code" in names:
            values = [node.value.body, node.value.orelse] if isinstance(node.value, ast.IfExp) else [node.value]
            for value in values:
                if isinstance(value, ast.Tuple):
                    yield from strings_of(value.elts[names.index("code")])
    elif isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") in _CODE_NAMES:
        yield from strings_of(node.value)
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
            if argument.arg == "code":
                yield from strings_of(default)


def codes_in_source() -> set[str]:
    found = {code for tree in trees(*_OTHERS_CODES) for node in ast.walk(tree) for code in codes_in(node)}
    return {code for code in found if re.fullmatch(r"[a-z][a-z_]+", code)} - {"error"}  # the class above all


def test_every_error_code_is_documented_and_nothing_else():
    assert set(first_cells("errors.md")) == codes_in_source()


def raised_in(module: ModuleType) -> Iterator[tuple[str, int]]:
    """Codes that errors are made with in a module, and the statuses of their classes. A code that is given is not seen."""
    for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))):
        kind = (
            vars(module).get(node.func.id) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
        )
        if isinstance(kind, type) and issubclass(kind, errors.DomainError) and STATUS.keys() & set(kind.__mro__):
            given = [one.value for one in node.keywords if one.arg == "code"]
            status = next(STATUS[one] for one in kind.__mro__ if one in STATUS)
            for code in strings_of(given[0]) if given else [kind.code]:
                yield code, status


def test_every_code_is_answered_with_a_status_that_is_documented():
    names = [
        module.name for module in pkgutil.walk_packages(control_plane.__path__, "amplifier_api_server.control_plane.")
    ]
    modules = [importlib.import_module(name) for name in names if ".migrations." not in name]
    raised = {one for module in modules for one in raised_in(module)}
    assert len(raised) > 100
    assert {(code, status) for code, status in raised if status not in statuses_of(code)} == set()


def statuses_of(code: str) -> set[int]:
    return set().union(*(one.statuses for one in CODES[code]))


# Events, metrics.


def logged(*levels: str) -> set[str]:
    """The texts that the control plane logs at these levels; what a runtime logs stays in its sandbox."""
    found = set()
    for path in (SOURCE / "control_plane").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in levels
                and ast.unparse(node.func.value) in ("log", "self._log")
                and node.args
            ):
                found |= set(strings_of(node.args[0]))
    # `report` is log.error or log.info, by status.
    return found | ({"api:error"} if "error" in levels else set())


def test_every_named_event_is_documented_and_nothing_else():
    named = {text for text in logged("debug", "info", "warning", "error", "exception") if ":" in text}
    assert (
        set(first_cells("events.md", "Events")) | set(first_cells("events.md", "Events of the model gateway")) == named
    )


def test_every_warning_and_error_is_documented_and_nothing_else():
    lines = {text for text in logged("warning", "error", "exception") if ":" not in text}
    assert set(first_cells("events.md", "Warnings and errors")) == lines


def test_every_metric_is_documented_with_its_labels_and_nothing_else():
    documented = {}
    for line in (DOCS / "events.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `amplifier_"):
            cells = [re.findall(r"`([^`]+)`", cell) for cell in line.split("|")]
            documented[cells[1][0]] = set(cells[2])
    served = {}
    ours = [one for one in Telemetry().registry._collector_to_names if isinstance(one, MetricWrapperBase)]
    for metric in ours:
        suffix = "_total" if metric._type == "counter" else ""
        served[metric._name + suffix] = set(metric._labelnames)
    assert documented == served


# Links.


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (anchor and found.suffix == ".md" and anchor not in anchors(found)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The headings of a page, as forges make anchors of them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.replace("`", "").lower()).strip().replace(" ", "-") for one in headings}


def test_every_page_can_be_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        targets = re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8"))
        waiting += [(page.parent / one).resolve() for one in targets if not re.match(r"[a-z]+:", one)]
    assert [str(page.relative_to(ROOT)) for page in PAGES if page not in reached] == []


def test_every_test_that_the_docs_name_is_there():
    named = {name for page in PAGES for name in re.findall(r"`(test_[a-z0-9_]+)`", page.read_text(encoding="utf-8"))}
    there = set()
    for path in (ROOT / "tests").rglob("*.py"):
        there |= set(re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8")))
    assert named - there == set()
