"""Ids: a prefix that says the kind, and 128 random bits in base62. Never guessed, never reused, never ordered."""

from __future__ import annotations

import secrets
from typing import NewType

TenantId = NewType("TenantId", str)
MemberId = NewType("MemberId", str)
KeyId = NewType("KeyId", str)
CredentialId = NewType("CredentialId", str)  # what a caller showed: a key's id, a login's, or "jwt_" and a hash
PersonId = NewType("PersonId", str)
LoginId = NewType("LoginId", str)
InvitationId = NewType("InvitationId", str)
RoleId = NewType("RoleId", str)
ApprovalId = NewType("ApprovalId", str)
SessionId = NewType("SessionId", str)
TurnId = NewType("TurnId", str)  # `request_id` on the wire
RuntimeId = NewType("RuntimeId", str)
CollectionId = NewType("CollectionId", str)
InstallationId = NewType("InstallationId", str)
ProfileId = NewType("ProfileId", str)
ProviderKeyId = NewType("ProviderKeyId", str)

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_LENGTH = 22  # 62**22 is just above 2**128 (RFC 4122's width: enough that a collision is no case to handle)


def random_base62(length: int) -> str:
    """`length` characters from the system's random source, each of 62 equally likely."""
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def new_tenant_id() -> TenantId:
    return TenantId("ten_" + random_base62(_LENGTH))


def new_member_id() -> MemberId:
    return MemberId("mem_" + random_base62(_LENGTH))


def new_key_id() -> KeyId:
    return KeyId("key_" + random_base62(_LENGTH))


def new_session_id() -> SessionId:
    return SessionId("sess_" + random_base62(_LENGTH))


def new_turn_id() -> TurnId:
    return TurnId("req_" + random_base62(_LENGTH))


def new_runtime_id() -> RuntimeId:
    return RuntimeId("run_" + random_base62(_LENGTH))


def new_collection_id() -> CollectionId:
    return CollectionId("col_" + random_base62(_LENGTH))


def new_installation_id() -> InstallationId:
    return InstallationId("inst_" + random_base62(_LENGTH))


def new_profile_id() -> ProfileId:
    return ProfileId("prof_" + random_base62(_LENGTH))


def new_provider_key_id() -> ProviderKeyId:
    return ProviderKeyId("pkey_" + random_base62(_LENGTH))


def new_person_id() -> PersonId:
    return PersonId("per_" + random_base62(_LENGTH))


def new_identity_id() -> str:
    return "idn_" + random_base62(_LENGTH)


def new_login_id() -> LoginId:
    return LoginId("login_" + random_base62(_LENGTH))


def new_invitation_id() -> InvitationId:
    return InvitationId("inv_" + random_base62(_LENGTH))


def new_role_id() -> RoleId:
    return RoleId("role_" + random_base62(_LENGTH))


def new_device_grant_id() -> str:
    return "dev_" + random_base62(_LENGTH)


def new_callback_id() -> str:
    return "cb_" + random_base62(_LENGTH)
