"""The hot path: which runtime has the session, and bytes to and from it. Plain ASGI; no framework, no database."""
