"""What must hold of the whole repository: nothing is served without a permission, nothing is documented by half, nothing
grows without bound.
"""

import ast
import inspect
import re
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

import amplifier_api_server
from amplifier_api_server.control_plane import errors as problems
from amplifier_api_server.control_plane.app import Application
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.clock import SystemClock
from amplifier_api_server.control_plane.gate import Gate
from amplifier_api_server.control_plane.limits.backend import Standing
from amplifier_api_server.control_plane.operations import Admit
from amplifier_api_server.control_plane.pods.launcher import LaunchError
from amplifier_api_server.control_plane.pods.memory import MemoryLauncher
from amplifier_api_server.control_plane.routes import Match
from amplifier_api_server.control_plane.settings import Section, Settings
from amplifier_api_server.runtime import protocol
from amplifier_api_server.tenants import errors
from amplifier_api_server.tenants.ids import KeyId, MemberId, TenantId
from amplifier_api_server.tenants.permissions import GRANTS, Role, allows, is_permission
from amplifier_api_server.tenants.tiers import Limits

ROOT = Path(__file__).parent.parent
SOURCE = Path(amplifier_api_server.__file__).parent
PAGES = {"/", "/docs", "/docs/assets/{name}", "/docs/{name}", "/errors", "/errors/{code}"}  # for people
LOGGING_IN = {  # each checks the cookie, the code or the key that it is about
    "/auth/methods",
    "/auth/login/{provider}",
    "/auth/callback/{provider}",
    "/auth/session",
    "/auth/tenant",
    "/auth/logout",
    "/auth/invitation",
    "/auth/invitations/accept",
    "/auth/device",
    "/auth/device/code",
    "/auth/device/token",
    "/auth/device/decide",
}
OPEN = {"/health", "/ready", "/metrics", "/openapi.json", "/asyncapi.json", *PAGES, *LOGGING_IN}  # to everybody
OPEN_OPERATIONS = {"graphiql"}  # at a path that has others: a page, which lets nobody in by itself
OF_THE_FRAMEWORK = {"/openapi.json", *PAGES}


async def _serve_nobody(runtime_id):
    raise LaunchError(f"{runtime_id} is not wanted here")


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    settings = Settings.model_validate({"server": {"data_dir": str(tmp_path_factory.mktemp("rules"))}})
    return Application(settings, pepper=b"p" * 32, make_launcher=lambda *_: MemoryLauncher(_serve_nobody))


@pytest.fixture(scope="module")
def framework(app):
    """The FastAPI application behind the edge."""
    return app.asgi._inner


def operations(framework) -> set[tuple[str, str]]:
    found, left = set(), [("", one) for one in framework.routes]
    while left:
        prefix, one = left.pop()
        if isinstance(one, APIRoute):
            found |= {(method, prefix + one.path) for method in one.methods - {"HEAD"}}
        elif (included := getattr(one, "original_router", None)) is not None:
            left += [(prefix + one.include_context.prefix, inner) for inner in included.routes]
    return found


def rows(app) -> set[tuple[str, str]]:
    return {(route.method, route.template) for route in app.routes.routes if route.method != "HEAD"}


class TestRoutes:
    def test_every_route_of_the_framework_is_in_the_table(self, app, framework):
        assert operations(framework)
        assert operations(framework) <= rows(app)

    def test_every_row_of_the_table_is_served(self, app, framework):
        served = operations(framework) | {("GET", path) for path in OF_THE_FRAMEWORK}
        hot = {(route.method, route.template) for route in app.routes.routes if route.handler is not None}
        assert rows(app) <= served | hot

    def test_the_documentation_lists_them_all_and_no_others(self, app, framework):
        documented = {(method.upper(), path) for path, item in framework.openapi()["paths"].items() for method in item}
        assert documented == rows(app) - {("GET", path) for path in OF_THE_FRAMEWORK}

    def test_every_row_but_the_open_ones_takes_a_permission_that_exists(self, app):
        for route in app.routes.routes:
            if route.template in OPEN or route.operation.name in OPEN_OPERATIONS:
                assert route.permission is None
            else:
                assert route.permission is not None, route
                assert is_permission(route.permission), route

    def test_only_what_explains_limits_and_callers_is_free_of_limits(self, app):
        free = {
            route.template
            for route in app.routes.routes
            if route.operation.admit is Admit.NOBODY and route.permission is not None
        }
        assert free - {"/graphql"} == {"/v1/limits", "/v1/me"}  # behind /graphql each field is an operation of its own


class Stub:
    """Authentication and limits, that let everybody through as who they are."""

    def __init__(self, role: Role) -> None:
        tenant = TenantId("") if role is Role.OPERATOR else TenantId("ten_x")
        self.principal = Principal(
            KeyId("key_x"), tenant, MemberId("mem_x"), role.value, GRANTS[role], "enterprise", Limits()
        )
        self.admitted = 0

    async def authenticate(self, headers):
        return self.principal

    async def request(self, principal):
        self.admitted += 1
        return Standing(name="requests_per_minute", limit=None, used=0, reserved=0, remaining=None, resets_at=0.0)

    async def request_ahead(self, principal, *, is_kept):
        return await self.request(principal)

    async def has_disk_left(self, principal, *, may_free):
        pass


@pytest.mark.parametrize("role", list(Role))
async def test_the_edge_refuses_each_role_each_route_that_it_has_no_permission_for(app, role, monkeypatch):
    """The matrix, through the edge itself: what is behind it is reached exactly by who may."""
    stub = Stub(role)
    monkeypatch.setattr(app.asgi, "_authenticator", stub)
    monkeypatch.setattr(app.asgi, "_gate", Gate(stub))
    for route in app.routes.routes:
        if route.permission is None:
            continue
        may = allows(GRANTS[role], route.permission)
        reached, sent = [], []

        async def behind(scope, receive, send, reached=reached):
            reached.append(scope["path"])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        path = re.sub(r"\{\w+\}", "x", route.template)
        bound = type(route)(route.method, route.template, route.operation, route.max_body, handler=behind)
        params = dict.fromkeys(re.findall(r"\{(\w+)\}", route.template), "x")
        monkeypatch.setattr(app.asgi, "_match", lambda _scope, bound=bound, params=params: Match(bound, params))
        scope = {"type": "http", "method": route.method, "path": path, "raw_path": path.encode(), "headers": []}

        async def send(message, sent=sent):
            sent.append(message)

        stub.admitted = 0
        await app.asgi(scope, None, send)
        assert bool(reached) is may, (role, route.method, route.template)
        assert sent[0]["status"] == (200 if may else 403)
        assert may or stub.admitted == 0, "who may not is not counted"


class TestRepositories:
    """`tenant_id` comes first, or the name says that it is of all tenants."""

    # What a key's text, a tenant's own row, or a migration is found by, before there is a tenant.
    MACHINERY = ("_of_all_tenants", "_of_operator", "_of_operators")
    BEFORE_A_TENANT = (("keys", "find_by_digest"),)

    def functions(self):
        for path in sorted((SOURCE / "tenants" / "repository").glob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef) and not node.name.startswith("_"):
                    yield path.stem, node

    def test_there_are_some(self):
        assert len(list(self.functions())) > 30

    def test_each_takes_a_tenant_or_says_that_it_does_not(self):
        wrong = []
        for module, function in self.functions():
            arguments = [one.arg for one in function.args.args]
            is_machinery = function.name.endswith(self.MACHINERY) or (module, function.name) in self.BEFORE_A_TENANT
            if arguments[:2] != ["db", "tenant_id"] and not is_machinery:
                wrong.append(f"{module}.{function.name}({', '.join(arguments)})")
            if "tenant_id" in arguments and function.name.endswith("_of_all_tenants"):
                wrong.append(f"{module}.{function.name} says of all tenants and takes one")
        assert not wrong

    def test_nobody_else_speaks_sql(self):
        allowed = {"db.py", "sqlite.py"}
        wrong = []
        for path in SOURCE.rglob("*.py"):
            if "repository" in path.parts or "migrations" in path.parts or path.name in allowed:
                continue
            if re.search(
                r"^from (sqlalchemy|sqlmodel) import .*\b(select|update|delete|insert)\b",
                path.read_text(),
                re.MULTILINE,
            ):
                wrong.append(str(path.relative_to(SOURCE)))
        assert not wrong


def settings_of(section: type[Section], prefix: str) -> list[str]:
    """Every setting's name, by its section."""
    found = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if inspect.isclass(kind) and issubclass(kind, Section):
            found += settings_of(kind, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}")
    return found


def document(name: str) -> str:
    path = ROOT / "docs" / name
    assert path.exists(), f"docs/{name} is not there"
    return path.read_text()


class TestDocuments:
    def test_every_setting_is_documented(self):
        text = document("configuration.md")
        missing = [
            name
            for name in settings_of(Settings, "")
            if f"`{name}`" not in text and f"`{name.rpartition('.')[2]}`" not in text
        ]
        assert not missing

    def test_every_limit_is_documented(self):
        text = document("configuration.md") + document("errors.md")
        assert not [name for name in Limits.__dataclass_fields__ if name not in text]

    def test_every_error_code_is_documented(self):
        text = document("errors.md")
        assert not sorted(code for code in codes() if f"`{code}`" not in text)

    def test_every_status_is_in_the_table_of_errors(self):
        kinds = [
            kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.DomainError)
        ]
        assert not [kind for kind in kinds if kind is not errors.DomainError and kind not in problems.STATUS]
        assert all(status in problems.TITLES for status in problems.STATUS.values())

    def test_every_event_is_documented(self):
        text = "\n".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
        streamed = [event.value for event in protocol.EventName]
        logged = re.findall(
            r'"((?:api|session|rate_limit):[a-z]+)"', (SOURCE / "control_plane/telemetry.py").read_text()
        )
        assert len(logged) >= 6
        assert not [name for name in (*streamed, *logged) if f"`{name}`" not in text]

    def test_every_command_is_documented(self):
        text = "\n".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
        assert not [
            name for name in ("serve", "openapi", "migrate", "tenants", "keys", "usage", "doctor") if name not in text
        ]


def codes() -> set[str]:
    """Every stable code: of the classes, and wherever one is given another by its literal."""
    found = {
        kind.code for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.DomainError)
    }
    found -= {errors.DomainError.code}
    for path in SOURCE.rglob("*.py"):
        if "modules" in path.parts or "model_gateway" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                found.add(node.value.value)
    return {code for code in found if isinstance(code, str) and re.fullmatch(r"[a-z][a-z_]+", code)}


class TestFiles:
    def test_none_is_longer_than_500_lines(self):
        long = []
        for folder in ("src", "tests", "benchmarks"):
            for path in (ROOT / folder).rglob("*.py"):
                lines = path.read_text().count("\n")
                if lines > 500:
                    long.append(f"{path.relative_to(ROOT)}: {lines}")
        assert not long

    def test_every_module_says_what_it_is(self):
        silent = [
            str(path.relative_to(SOURCE))
            for path in SOURCE.rglob("*.py")
            if path.read_text().strip() and ast.get_docstring(ast.parse(path.read_text())) is None
        ]
        assert not silent

    def test_nothing_is_put_off(self):
        marks = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b")
        found = [str(path.relative_to(ROOT)) for path in SOURCE.rglob("*.py") if marks.search(path.read_text())]
        assert not found

    def test_no_secret_has_a_default(self):
        assert Settings().auth.key_pepper is None
        assert Settings().models.providers == ()


def test_the_clock_is_injected():
    """Nothing but the clock reads the time of day, so that tests can say what it is."""
    reads = re.compile(r"datetime\.now\(|datetime\.utcnow\(")
    found = [
        str(path.relative_to(SOURCE))
        for path in (SOURCE / "control_plane").rglob("*.py")
        if reads.search(path.read_text()) and path.name not in ("clock.py", "telemetry.py")  # a log line's own time
    ]
    assert not found
    assert SystemClock().now().tzinfo is not None
