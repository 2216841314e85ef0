"""Which certificates are trusted when something is fetched: the system's, and the operator's beside them.

Owns one TLS context for our own client and one file for programs that want theirs as a file.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

# Where systems keep all certificates in one file: Debian, Fedora, Alpine and the BSDs, SUSE.
_SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
)


def context_of(ca_file: Path | None) -> ssl.SSLContext:
    """A context that checks names and chains. Raises OSError for a file that can't be read or holds no certificate."""
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(cafile=str(ca_file))
    context.set_alpn_protocols(["http/1.1"])
    return context


def bundle_of(ca_file: Path | None) -> bytes | None:
    """The system's certificates and the operator's in one PEM; None where a program's own default will do.

    Raises OSError. Blocks.
    """
    if ca_file is None and not os.environ.get("SSL_CERT_FILE"):
        return None
    system = [ssl.get_default_verify_paths().cafile, *_SYSTEM_BUNDLES]
    found = next((path for path in map(Path, filter(None, system)) if path.is_file()), None)
    return b"\n".join(path.read_bytes() for path in (found, ca_file) if path is not None)
