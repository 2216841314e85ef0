"""What is in the audit log: the operations that change who may do what, with what, and what is left of it.

What people do with the product all day (sessions, executions, tools) is not: the sessions, executions and the ledger tell it
themselves. A test does each of these by REST and finds its entry.
"""

from __future__ import annotations

from typing import Final

AUDITED: Final = frozenset(
    {
        "closeSession",
        "answerApproval",
        "setProfile",
        "deleteProfile",
        "installCollection",
        "deleteCollection",
        "cancelInstallation",
        "createKey",
        "revokeKey",
        "rotateKey",
        "setProviderKey",
        "deleteProviderKey",
        "setWebPolicy",
        "createMember",
        "updateMember",
        "deleteMember",
        "createInvitation",
        "revokeInvitation",
        "acceptInvitation",
        "createRole",
        "updateRole",
        "deleteRole",
        "exportAuditEntries",
        "createTenant",
        "updateTenant",
        "deleteTenant",
        "finishLogin",
        "logOut",
        "decideDeviceLogin",
    }
)

# Where the entry is written in the transaction of the change: none with a request's id says that it was not done. An answer
# to an approval is a sandbox's to take; its entry follows.
KNOWN_BY_THE_LOG: Final = AUDITED - {"answerApproval"}
