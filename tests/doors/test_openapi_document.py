"""The OpenAPI document is whole: what clients are generated from has a name, a type and a media type for everything."""

import re

import pytest

from amplifier_api_server.control_plane.framework import openapi_document
from amplifier_api_server.control_plane.operations import OPERATIONS
from amplifier_api_server.control_plane.settings import Settings

EMPTY = {"204", "303"}  # answers without a body


@pytest.fixture(scope="module")
def document():
    return openapi_document(Settings())


@pytest.fixture(scope="module")
def operations(document):
    return {one["operationId"]: one for item in document["paths"].values() for one in item.values()}


def test_each_has_one_name_which_is_its_operations(document, operations):
    assert len(operations) == sum(len(item) for item in document["paths"].values())
    assert set(operations) <= set(OPERATIONS)
    assert not [name for name, one in operations.items() if not one.get("summary") or not one.get("tags")]


def test_every_answer_has_a_media_type_and_a_schema(operations):
    bare = []
    for name, one in operations.items():
        for status, answer in one["responses"].items():
            content = answer.get("content", {})
            if status in EMPTY:
                assert not content, (name, status)
            elif not content or not all(media.get("schema") for media in content.values()):
                bare.append((name, status))
    assert not bare


def test_every_refusal_is_a_problem(operations):
    """Or, beside it, a page for people and the shape that another standard asks for."""
    others = {("finishDeviceLogin", "400"), ("ready", "503")}  # RFC 8628; what is not ready
    found = {
        (name, status)
        for name, one in operations.items()
        for status, answer in one["responses"].items()
        if int(status) >= 400 and "application/problem+json" not in answer["content"]
    }
    assert found == others


def test_what_knows_its_caller_says_that_it_may_refuse(operations):
    for name, one in operations.items():
        is_known = OPERATIONS[name].permission is not None
        assert bool(one["security"]) is is_known, name
        if is_known:
            assert {"401", "403", "503"} <= one["responses"].keys(), name


def test_what_can_be_repeated_takes_a_key(operations):
    for name, one in operations.items():
        named = {parameter["name"] for parameter in one.get("parameters", [])}
        assert ("Idempotency-Key" in named) is OPERATIONS[name].takes_key, name


def test_each_placeholder_of_a_path_is_a_parameter(document):
    for path, item in document["paths"].items():
        for one in item.values():
            placed = {parameter["name"] for parameter in one.get("parameters", []) if parameter["in"] == "path"}
            assert placed == set(re.findall(r"\{(\w+)\}", path)), path


def test_every_reference_leads_somewhere_and_every_component_is_used(document):
    found = set(re.findall(r"#/components/([A-Za-z]+/[A-Za-z0-9_-]+)", str(document)))
    there = {f"{kind}/{name}" for kind in ("schemas", "headers") for name in document["components"][kind]}
    assert found - there == set()
    assert there - found == set()


def test_every_answer_says_which_request_it_is_of(operations):
    for name, one in operations.items():
        for status, answer in one["responses"].items():
            assert "X-Request-Id" in answer["headers"], (name, status)
