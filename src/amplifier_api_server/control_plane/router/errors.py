"""What can go wrong between the control plane and a runtime.

RouterError
+-- DialError        no connection: nothing was sent, so trying again, elsewhere, is safe
+-- Broken           the connection ended before the answer did
+-- HeadTimeout      the runtime took the request and did not begin to answer
+-- IdleTimeout      the answer stopped coming
"""

from __future__ import annotations


class RouterError(Exception):
    """A runtime could not be talked to."""


class DialError(RouterError):
    pass


class Broken(RouterError):
    pass


class HeadTimeout(RouterError):
    pass


class IdleTimeout(RouterError):
    pass
