"""What every page for people is made of.

Plain HTML that works without a script. Owns the pages' policy: no script runs on them whatever gets in, nothing is loaded
from anywhere, no other page frames them, and forms lead back here alone.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Final

_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:3rem 0;padding:0 1rem;color:#1a1a1a;background:#fff}"
    "main{max-width:34rem;margin:0 auto}h1{font-size:1.5rem}dt{font-weight:600;margin-top:.5rem}dd{margin:0}"
    "code,input{font:inherit}"
    "code{font-family:ui-monospace,monospace;background:#f0f0f0;padding:.1em .3em}"
    "label{display:block;font-weight:600;margin-top:1rem}input{width:100%;box-sizing:border-box;padding:.5rem;"
    "border:1px solid #595959;border-radius:4px}button,a.button{font:inherit;display:inline-block;padding:.5rem 1.2rem;"
    "margin:1rem .5rem 0 0;border:1px solid #1a1a1a;border-radius:4px;background:#fff;color:#1a1a1a;text-decoration:none}"
    "button.yes{background:#0b5c2c;border-color:#0b5c2c;color:#fff}"
    ":focus-visible{outline:3px solid #1a56c4;outline-offset:2px}"
    ".wrong{border-left:4px solid #a11;padding-left:1rem}fieldset{border:0;padding:0;margin:2rem 0 0}"
    "main.wide{max-width:60rem}main.wide pre{overflow-x:auto;padding:.7rem;background:#f0f0f0}main.wide pre code{padding:0}"
    "table{border-collapse:collapse}td,th{border:1px solid #999;padding:.3rem .5rem;text-align:left;vertical-align:top}"
    "@media(prefers-color-scheme:dark){body{background:#161616;color:#eee}code,main.wide pre{background:#333}a{color:#9cf}"
    "input{background:#222;color:#eee;border-color:#aaa}button,a.button{background:#222;color:#eee;border-color:#eee}}"
)
_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS: Final = {
    "content-security-policy": (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_HASH}'; form-action 'self'; frame-ancestors 'none'; "
        "base-uri 'none'"
    ),
    # Codes stand in addresses, so no other site is told any; ours is, or browsers would post forms with a null Origin.
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "content-type": "text/html; charset=utf-8",
}


def page(title: str, body: str, *, is_wide: bool = False) -> str:
    """A whole page; `body` is HTML already. A wide one is to be read: it has tables and code."""
    main = '<main class="wide">' if is_wide else "<main>"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)} - Amplifier API</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head>\n<body>{main}<h1>{escape(title)}</h1>\n{body}\n</main></body></html>\n"
    )
