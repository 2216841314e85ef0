"""The GraphQL door as REST's document shows it: one request, one response; what is in them the schema says."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from amplifier_api_server.control_plane.openapi import operation


class GraphqlRequest(BaseModel):
    """`POST /graphql`."""

    model_config = ConfigDict(json_schema_extra={"example": {"query": "{ sessions { id status } }"}})

    query: Annotated[str, Field(min_length=1, description="a GraphQL document")]
    variables: dict[str, Any] | None = None
    operationName: Annotated[  # noqa: N815 - GraphQL over HTTP's name
        str | None, Field(description="which of the document's operations")
    ] = None
    extensions: dict[str, Any] | None = None


class GraphqlError(BaseModel):
    message: str
    extensions: Annotated[dict[str, Any], Field(description="the problem, as every other path answers with it")]
    path: list[str | int] | None = None
    locations: list[dict[str, int]] | None = None


class GraphqlResponse(BaseModel):
    """200 where the document was carried out, whatever became of its fields."""

    data: dict[str, Any] | None = None
    errors: list[GraphqlError] | None = None


POST: Final = operation(
    operation_id="graphql",
    summary="Carry out a GraphQL document",
    description="Carries out one operation of a GraphQL document. The schema of the API is what introspection gives.",
    answer=GraphqlResponse,
    body=GraphqlRequest,
    streams="GraphqlEvent",
    statuses=(400, 401, 403, 413, 415, 422, 429, 503),
    tag="graphql",
)
GET: Final = operation(
    operation_id="graphiql",
    summary="Carry out a GraphQL query, or get a page to try queries in",
    description="With `query`, carries it out: it changes nothing. Without it, gives a browser a page to try documents in.",
    answer=GraphqlResponse,
    streams="GraphqlEvent",
    statuses=(400, 401, 403, 404, 405, 422, 429, 503),
    tag="graphql",
) | {
    "parameters": [
        {"name": name, "in": "query", "required": False, "schema": {"type": "string"}, "description": text}
        for name, text in (
            ("query", "a GraphQL document, which changes nothing, such as { sessions { id } }"),
            ("variables", "a JSON object"),
            ("operationName", "which of the document's operations"),
        )
    ]
}
_REFUSED: Final = {
    media_type: {"schema": {"$ref": "#/components/schemas/GraphqlResponse"}}
    for media_type in ("application/json", "application/graphql-response+json")
}
for _one in (POST, GET):  # a document that can't be carried out; what is no request at all is a problem
    _one["responses"]["400"] = {
        **_one["responses"]["400"],
        "content": {**_one["responses"]["400"]["content"], **_REFUSED},
    }
GET["responses"]["204"] = {"description": "Last-Event-ID says that the stream's `complete` was read"}
GET["parameters"][0]["example"] = "{ sessions { id } }"
GET["responses"]["200"]["content"]["text/html"] = {"schema": {"type": "string"}}
GET["responses"]["200"]["content"]["application/graphql-response+json"] = GET["responses"]["200"]["content"][
    "application/json"
]
POST["responses"]["200"]["content"]["application/graphql-response+json"] = POST["responses"]["200"]["content"][
    "application/json"
]
