"""What another tenant owns does not exist: null where a field can be null, `not_found` everywhere else."""

import pytest

from amplifier_api_server.control_plane.graphql.schema import BOUND, CORE
from tests.control_plane.graphql.documents import document_of

# Fields whose arguments name something that somebody owns, and what.
OWNED = {
    ("Query", "session"): {"id": "session"},
    ("Query", "node"): {"id": "session"},
    ("Query", "execution"): {"sessionId": "session", "requestId": "execution"},
    ("Query", "executions"): {"sessionId": "session"},
    ("Query", "messages"): {"sessionId": "session"},
    ("Query", "approvals"): {"sessionId": "session", "requestId": "execution"},
    ("Query", "exportSession"): {"sessionId": "session"},
    ("Query", "key"): {"id": "key"},
    ("Query", "member"): {"id": "member"},
    ("Query", "role"): {"name": "role"},
    ("Query", "invitation"): {"id": "invitation"},
    ("Query", "profile"): {"name": "profile"},
    ("Query", "auditEntries"): {"tenantId": "tenant"},
    ("Mutation", "updateSession"): {"sessionId": "session"},
    ("Mutation", "closeSession"): {"sessionId": "session"},
    ("Mutation", "forkSession"): {"sessionId": "session"},
    ("Mutation", "execute"): {"sessionId": "session"},
    ("Mutation", "startExecution"): {"sessionId": "session"},
    ("Mutation", "cancelExecution"): {"sessionId": "session", "requestId": "execution"},
    ("Mutation", "answerApproval"): {"sessionId": "session", "requestId": "execution", "approved": "true"},
    ("Mutation", "revokeKey"): {"id": "key"},
    ("Mutation", "rotateKey"): {"id": "key"},
    ("Mutation", "updateMember"): {"id": "member"},
    ("Mutation", "deleteMember"): {"id": "member"},
    ("Mutation", "revokeInvitation"): {"id": "invitation"},
    ("Mutation", "updateRole"): {"name": "role", "description": '"mine"'},
    ("Mutation", "deleteRole"): {"name": "role"},
    ("Mutation", "deleteProfile"): {"name": "profile"},
    ("Subscription", "executionStream"): {"sessionId": "session", "requestId": "execution"},
}
# Fields with such arguments whose rows no test of this file makes: the operator's, and what needs an installation.
ELSEWHERE = {
    ("Query", "installation"),
    ("Query", "tenant"),
    ("Query", "collection"),
    ("Mutation", "cancelInstallation"),
    ("Mutation", "deleteCollection"),
    ("Mutation", "updateTenant"),
    ("Mutation", "deleteTenant"),
}


def test_no_field_that_takes_an_id_is_left_out():
    takes = {
        (kind, name)
        for kind, name in BOUND
        if any(str(one.type) == "ID!" for one in CORE.type_map[kind].fields[name].args.values())
    }
    assert takes - OWNED.keys() - ELSEWHERE == set()


@pytest.fixture
async def owned(door):
    session = await door.session()
    ran = await door.ask('mutation($s: ID!) { execute(sessionId: $s, prompt: "hi") { requestId } }', s=session)
    made = await door.ask(
        """mutation {
          createKey(name: "k", role: "developer") { id memberId }
          createInvitation(email: "ada@example.com", role: "developer") { id }
          createRole(name: "reviewer", permissions: ["sessions:read"]) { name }
        }"""
    )
    me = await door.ask("{ me { tenant { id } } }")
    return {
        "session": session,
        "execution": ran["execute"]["requestId"],
        "key": made["createKey"]["id"],
        "member": made["createKey"]["memberId"],
        "invitation": made["createInvitation"]["id"],
        "role": "reviewer",
        "profile": "mine",
        "tenant": me["me"]["tenant"]["id"],
    }


async def test_every_object_is_another_tenants_and_so_nothing(door, owned):
    other = await door.another_tenant()
    wrong = []
    for (kind, name), arguments in OWNED.items():
        values = {one: f'"{owned[what]}"' if what in owned else what for one, what in arguments.items()}
        accept = "text/event-stream" if kind == "Subscription" else "application/json"
        answer = await other.post(document_of(kind, name, **values), accept=accept)
        if CORE.type_map[kind].fields[name].type.__class__.__name__ != "GraphQLNonNull":
            is_nothing = answer.json() == {"data": {name: None}}
        else:
            is_nothing = 'not_found"' in answer.text
        if not is_nothing:
            wrong.append((kind, name, answer.text[:300]))
    assert wrong == []


async def test_lists_hold_nothing_of_another_tenant(door, owned):
    other = await door.another_tenant()
    said = await other.post(
        """{ sessions { id } sessionsConnection { nodes { id } } keys { nodes { id } } members { nodes { id } }
             invitations { nodes { id } } roles { name } auditEntries { nodes { target } } collections { name }
             installations { nodes { id } } usage { nodes { key } } providerKeys { nodes { provider } } }"""
    )
    assert "errors" not in said.json(), said.text
    assert not [what for what, value in owned.items() if what != "profile" and value in said.text]
