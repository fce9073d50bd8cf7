"""The table of methods as plain rows: for a terminal, for a program, for the documentation."""

from __future__ import annotations

from typing import Any

from understudy.methods import Method

COLUMNS = ("method", "prefixes", "loss", "gate", "weight", "options", "source")


def method_row(method: Method) -> dict[str, Any]:
    """One method as a plain record; `loss` maps each estimator it has to what is compared."""
    return {
        "name": method.name,
        "summary": method.summary,
        "prefixes": method.prefixes.text,
        "loss": {name: method.objective(name).text for name in method.estimators},
        "gate": method.gate,
        "weight": method.weight,
        "options": dict(method.options),
        "needs_noise_channel": method.uses_channel,
        "source": method.source,
    }


def plain(value: object) -> str:
    """An option's value: numbers without needless digits, names as they are."""
    return value if isinstance(value, str) else f"{value:g}"


def method_cells(row: dict[str, Any], *, is_detailed: bool = False) -> dict[str, str]:
    """The record as text by column; in detail with its summary, and with what it needs of the expert."""
    losses = [f"{name}: {text}" for name, text in row["loss"].items()]
    options = [
        name if value is None else f"{name} = {plain(value)}" for name, value in row["options"].items()
    ]
    cells = {
        "method": row["name"],
        "prefixes": row["prefixes"],
        "loss": "; ".join(losses),
        "gate": row["gate"],
        "weight": row["weight"],
        "options": ", ".join(options) or "-",
        "source": row["source"],
    }
    if not is_detailed:
        return cells
    del cells["method"]
    needs = "a known noise channel (expert.noise)" if row["needs_noise_channel"] else "-"
    return {"summary": row["summary"], **cells, "needs": needs}
