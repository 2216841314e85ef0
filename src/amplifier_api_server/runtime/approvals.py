"""Who is asked when a hook wants a person's word: nobody yet, so the answer is no."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


class DenyingApprovals:
    """Denies every approval, which is also core's answer without a system."""

    async def request_approval(self, prompt: str, options: list[str], timeout: float, default: str) -> str:
        log.info("an approval was asked for and denied: no door takes answers")
        return "Deny" if "Deny" in options else options[-1] if options else "Deny"
