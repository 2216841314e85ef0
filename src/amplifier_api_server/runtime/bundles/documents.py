"""One bundle's document, read and checked: what it includes, and what it says itself.

Owns the shape of both formats: `bundle:` as it is today, and the older `profile:`, which becomes the same thing. Every
error names file and line. Where a module comes from is resolved here, because a relative path means something only here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from amplifier_api_server.runtime.bundles.composition import (
    MODULE_LISTS,
    Agent,
    Composed,
    ContextFile,
    Instruction,
    Origin,
)
from amplifier_api_server.runtime.bundles.findings import INVALID
from amplifier_api_server.runtime.bundles.trees import Place
from amplifier_api_server.runtime.frontmatter import Document
from amplifier_api_server.runtime.protocol import SourceUri

MAX_INCLUDES = 100  # of one document
MAX_AGENTS = 200
_SECTIONS = {"bundle", "includes", "session", "spawn", "agents", "context", *MODULE_LISTS}
_OLD_SECTIONS = {"profile", "includes", "session", "spawn", "agents", "context", "exclude", *MODULE_LISTS}
_MODULE_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")
_MAX_ADDRESSES = 50  # of one module's configuration

KeyPath = tuple[str | int, ...]


class Include(NamedTuple):
    text: str
    at: str  # file:line
    optional: bool = False
    is_profile: bool = False  # the older format's `extends`: a profile's name, whose circle is an error


@dataclass(frozen=True, slots=True)
class Part:
    """A document as a bundle."""

    document: Document
    place: Place
    name: str
    own: Composed
    includes: tuple[Include, ...]
    exclude: Any
    namespace_root: str  # from its folder; where the agents and context of its own name are
    is_old: bool
    unknown: tuple[str, ...]  # sections that mean nothing here

    def at(self, *path: str | int) -> str:
        return at(self.document, path)


def at(document: Document, path: KeyPath) -> str:
    """file:line of `path`, or of the nearest key above it that is known."""
    for length in range(len(path), 0, -1):
        if path[:length] in document.lines:
            return f"{document.name}:{document.lines[path[:length]]}"
    return document.name


def is_bundle(document: Document) -> bool:
    return isinstance(document.data.get("bundle"), Mapping) or is_old_profile(document)


def is_old_profile(document: Document) -> bool:
    return "bundle" not in document.data and isinstance(document.data.get("profile"), Mapping)


def part_of(document: Document, place: Place, collection: int, home: Place | None) -> Part:
    """Raises BadRequest. `home` is where the older format's mentions without a namespace begin."""
    is_old = is_old_profile(document)
    head = _mapping(document, "profile" if is_old else "bundle") or {}
    if not head and not (document.data.keys() & (_SECTIONS - {"context", "agents"})):
        raise document.wrong(INVALID, "this is no bundle: it should have a mapping `bundle`, or `profile`", "bundle")
    reader = _Reader(document, place.folder, collection)
    version = head.get("version")
    roster, access = reader.agents(is_old=is_old)
    instruction = Instruction(document.body, reader.origin(), home if is_old else None) if document.body else None
    own = Composed(
        name=_text(head.get("name")),
        version=None if version is None else str(version)[:64],
        description=_text(head.get("description")),
        instruction=instruction,
        session=reader.session(),
        spawn=reader.spawn(),
        providers=reader.modules(document.data, "providers"),
        tools=reader.modules(document.data, "tools"),
        hooks=reader.modules(document.data, "hooks"),
        agents=roster,
        access=access,
        context=reader.context(),
        model=reader.model() if is_old else None,
    )
    return Part(
        document=document,
        place=place,
        name=own.name,
        own=own,
        includes=(*(reader.extends() if is_old else ()), *reader.includes()),
        exclude=reader.exclude() if is_old else None,
        namespace_root=_text(head.get("namespace_root")),
        is_old=is_old,
        unknown=tuple(sorted(document.data.keys() - (_OLD_SECTIONS if is_old else _SECTIONS))),
    )


class _Reader:
    """The sections of one document, checked."""

    def __init__(self, document: Document, folder: Place, collection: int) -> None:
        self._document = document
        self._folder = folder
        self._collection = collection

    def origin(self, *path: str | int) -> Origin:
        return Origin(self._collection, self._folder, at(self._document, path))

    def includes(self) -> Iterator[Include]:
        for index, item in enumerate(self._list("includes", MAX_INCLUDES)):
            text = (item.get("bundle") or item.get("behavior")) if isinstance(item, Mapping) else item
            if not isinstance(text, str) or not text:
                raise self._wrong("an include should be a bundle's address, or {bundle: address}", "includes", index)
            optional = isinstance(item, Mapping) and item.get("optional") is True
            yield Include(text.strip(), at(self._document, ("includes", index)), optional)

    def extends(self) -> Iterator[Include]:
        given = self._document.data["profile"].get("extends")
        parents = given if isinstance(given, list) else [] if given is None else [given]
        if len(parents) > MAX_INCLUDES or not all(isinstance(parent, str) and parent for parent in parents):
            raise self._wrong("extends should be a profile's name, or a list of names", "profile", "extends")
        for parent in parents:
            yield Include(parent, at(self._document, ("profile", "extends")), is_profile=True)

    def exclude(self) -> Any:
        exclude = self._document.data.get("exclude")
        for value in exclude.values() if isinstance(exclude, Mapping) else [exclude]:
            if value in (None, "all", True):
                continue
            if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
                message = "exclude should be {section: all or a list of ids}, or a list of ids"
                raise self._wrong(message, "exclude")
        if isinstance(exclude, Mapping):
            return {section: [] if value is None else value for section, value in exclude.items()}
        return exclude

    def model(self) -> tuple[str, str] | None:
        model = self._document.data["profile"].get("model")
        if model is None:
            return None
        if not isinstance(model, str) or not model.strip("/"):
            raise self._wrong("profile.model should be provider/model", "profile", "model")
        return model, at(self._document, ("profile", "model"))

    def session(self) -> dict[str, Any]:
        session = dict(_mapping(self._document, "session") or {})
        for key in ("orchestrator", "context"):
            if session.get(key) is not None:
                session[key] = self.module(session[key], "session", key)
            else:
                session.pop(key, None)
        return session

    def spawn(self) -> dict[str, Any]:
        """What children get: its `tools`, which replace inherited ones, may be modules of their own."""
        spawn = dict(_mapping(self._document, "spawn") or {})
        if isinstance(spawn.get("tools"), list):
            tools = enumerate(spawn["tools"])
            spawn["tools"] = [
                one if isinstance(one, str) else self.module(one, "spawn", "tools", index) for index, one in tools
            ]
        return spawn

    def modules(self, data: Mapping[str, Any], *path: str | int) -> list[Mapping[str, Any]]:
        """The module list at the end of `path` of `data`, which has the last key of it."""
        items = data.get(str(path[-1]))
        if items is None:
            return []
        if not isinstance(items, list):
            raise self._wrong(f"{path[-1]} should be a list", *path)
        return [self.module(item, *path, index) for index, item in enumerate(items)]

    def module(self, item: Any, *path: str | int) -> dict[str, Any]:
        """One item, checked; where it stands and where it comes from are noted under `_at` and `_source`."""
        what = ".".join(map(str, path)) if isinstance(path[-1], str) else f"{path[-2]}: item {path[-1] + 1}"
        if isinstance(item, str):
            item = {"module": item}
        if not isinstance(item, Mapping) or not (item.get("module") or item.get("id") or path[0] == "session"):
            raise self._wrong(f"{what} should be {{module: id, config: {{...}}}}", *path)
        module_id = item.get("module")
        if module_id is not None and not _MODULE_ID.fullmatch(str(module_id)):
            raise self._wrong(f"{what}: {module_id!r:.100} is no module's id", *path)
        if not isinstance(item.get("config") or {}, Mapping):
            raise self._wrong(f"{what}: {module_id}: config should be a mapping", *path, "config")
        noted = {key: value for key, value in item.items() if value is not None and not key.startswith("_")}
        noted["_at"] = at(self._document, path)
        if (source := noted.pop("source", None)) is not None:
            noted["_source"] = self._source(source)
        if addresses := self._addresses(noted.get("config") or {}, path):
            noted["_addresses"] = addresses
        return noted

    def _addresses(self, config: Mapping[str, Any], path: KeyPath) -> dict[str, dict[str, str]]:
        """The repositories that a configuration names, each with where it stands."""
        found: dict[str, dict[str, str]] = {}
        for below, text in _texts(config):
            if text.startswith(("git+", "zip+")) and len(found) < _MAX_ADDRESSES:
                named_at = at(self._document, (*path, "config", *below))
                with contextlib.suppress(ValueError):  # it looks like one, and means something else
                    SourceUri.parse(text)
                    found[text] = {"at": named_at, "collection": str(self._collection)}
        return found

    def agents(self, *, is_old: bool) -> tuple[dict[str, Agent], str | list[str] | None]:
        """The roster, and which agents may be used. In the older format a text or list is a roster."""
        given = self._document.data.get("agents")
        if given is None:
            return {}, None
        if isinstance(given, Mapping):
            return self._roster(given), None
        names = isinstance(given, list) and all(isinstance(name, str) and name for name in given)
        if not names and given not in ("all", "none"):
            raise self._wrong("agents should be all, none, a list of names, or a mapping", "agents")
        if is_old and names:
            return {name: Agent({}, self.origin("agents")) for name in given[:MAX_AGENTS]}, None
        if is_old:
            return {"*": Agent({}, self.origin("agents"))} if given == "all" else {}, None
        return {}, given

    def context(self) -> dict[str, ContextFile]:
        section = _mapping(self._document, "context") or {}
        found: dict[str, ContextFile] = {}
        include = section.get("include") or []
        if not isinstance(include, list) or not all(isinstance(one, str) and one for one in include):
            raise self._wrong("context.include should be a list of files", "context", "include")
        for index, one in enumerate(include):
            found[one] = ContextFile(one, self.origin("context", "include", index))
        for key, value in section.items():
            if key != "include" and isinstance(value, str):
                found[key] = ContextFile(value, self.origin("context", key))
        return found

    def _roster(self, given: Mapping[str, Any]) -> dict[str, Agent]:
        include = given.get("include") or []
        if not isinstance(include, list) or not all(isinstance(name, str) and name for name in include):
            raise self._wrong("agents.include should be a list of names", "agents", "include")
        roster = {
            name: Agent({}, self.origin("agents", "include", index))
            for index, name in enumerate(include)
            if name != "*"
        }
        for key, value in given.items():
            if key != "include" and isinstance(value, Mapping):
                roster[key] = Agent(self.agent(value, "agents", key), self.origin("agents", key))
        if len(roster) > MAX_AGENTS:
            raise self._wrong(f"there are more than {MAX_AGENTS} agents", "agents")
        return roster

    def agent(self, data: Mapping[str, Any], *path: str | int) -> dict[str, Any]:
        """An agent's definition with its module lists checked."""
        noted = dict(data)
        for section in MODULE_LISTS:
            if section in data:
                noted[section] = self.modules(data, *path, section)
        session = data.get("session")
        if session is not None and not isinstance(session, Mapping):
            raise self._wrong("session should be a mapping", *path, "session")
        for key in ("orchestrator", "context"):
            if isinstance(session, Mapping) and session.get(key) is not None:
                noted["session"] = {**noted["session"], key: self.module(session[key], *path, "session", key)}
        return noted

    def _source(self, source: Any) -> dict[str, str]:
        """{uri, subdirectory} of a module, with the collection that says so; or {bad} when it can't be understood."""
        if not isinstance(source, str):
            return {"bad": "source should be an address"}
        if source.startswith(("./", "../")):
            place = self._folder.below(source)
            if place is None or not place.tree.uri:
                return {"bad": f"{source!r:.100} leads out of its repository"}
            return {"uri": place.tree.uri, "subdirectory": place.path, "collection": str(self._collection)}
        try:
            uri = SourceUri.parse(source)
        except ValueError as error:
            return {"bad": str(error)}
        return {"uri": uri.key, "subdirectory": uri.subdirectory, "collection": str(self._collection)}

    def _list(self, section: str, limit: int) -> list[Any]:
        items = self._document.data.get(section)
        if items is None:
            return []
        if not isinstance(items, list) or len(items) > limit:
            raise self._wrong(f"{section} should be a list of at most {limit}", section)
        return items

    def _wrong(self, message: str, *path: str | int) -> Exception:
        return self._document.wrong(INVALID, message, *path)


def agent_of(document: Document, place: Place, collection: int) -> dict[str, Any]:
    """An agent's file as its definition, the body as its instruction. Raises BadRequest."""
    meta = document.data.get("meta")
    is_flat = not isinstance(meta, Mapping) and not is_bundle(document)
    head: dict[str, Any] = dict(meta) if isinstance(meta, Mapping) else {}
    if is_flat:
        head = {key: document.data[key] for key in ("name", "description") if key in document.data}
    for key in (*MODULE_LISTS, "session", "provider_preferences", "model_role"):
        if document.data.get(key) is not None:
            head[key] = document.data[key]
    if isinstance(document.data.get("agents"), str | list):
        head["agents"] = document.data["agents"]
    if document.body:
        head["instruction"] = document.body
    return _Reader(document, place.folder, collection).agent(head)


def _mapping(document: Document, section: str) -> Mapping[str, Any] | None:
    value = document.data.get(section)
    if value is not None and not isinstance(value, Mapping):
        raise document.wrong(INVALID, f"{section} should be a mapping", section)
    return value


def _texts(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Every text in a JSON value, with where it is."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _texts(one, (*path, key))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from _texts(one, (*path, index))


def _text(value: Any) -> str:
    return str(value).strip()[:1000] if isinstance(value, str | int | float) else ""
