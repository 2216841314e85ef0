"""`amplifier-api-server doctor`."""

from __future__ import annotations

from rich.markup import escape

from amplifier_api_server.control_plane.commands.output import console, show_json
from amplifier_api_server.control_plane.doctor import Health, examine
from amplifier_api_server.control_plane.settings import Settings

_MARKS = {Health.GOOD: "[green]ok[/]     ", Health.WARNING: "[yellow]warning[/]", Health.BAD: "[red]failed[/] "}


async def tell(settings: Settings, *, as_json: bool) -> bool:
    """Print every finding; whether `serve` could run."""
    found = await examine(settings)
    is_fit = all(one.health is not Health.BAD for one in found)
    if as_json:
        rows = [{"name": one.name, "status": one.health.value, "says": one.says, "advice": one.advice} for one in found]
        show_json({"can_serve": is_fit, "findings": rows})
        return is_fit
    out = console()
    for one in found:
        out.print(f"{_MARKS[one.health]}  [bold]{escape(one.name)}[/]: {escape(one.says)}", soft_wrap=True)
        if one.advice:
            out.print(f"         → {escape(one.advice)}", soft_wrap=True)
    out.print("[green]serve can run here[/]" if is_fit else "[red]serve can't run here[/]")
    return is_fit
