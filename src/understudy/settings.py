"""From a TOML table to frozen dataclasses and back: types checked, unknown keys refused with the nearest valid name.

Understands what recipes need and no more: bool, int, float, str, Literal, tuple[X, ...], X | None, dict[str, ...],
nested dataclasses, and unions of dataclasses told apart by their one `Literal` field (their *tag*).
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

from understudy.errors import ConfigError

T = TypeVar("T")


def nearest(name: str, valid: typing.Iterable[str]) -> str:
    """A sentence that helps after a typo: the nearest valid name, or all of them when none is near."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    return f"Did you mean {close[0]}?" if close else f"Valid names: {', '.join(valid)}."


def from_table(cls: type[T], table: object, where: str = "") -> T:
    """Build the dataclass `cls` from a nested mapping; `where` is the dotted path used in messages.

    Raises:
        ConfigError: a key that is not a setting, a missing required one, or a value of another type.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where or 'the recipe'} must be a table of settings, got {table!r}.")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in fields:
            raise ConfigError(f"{path} is not a setting. {nearest(str(key), fields)}")
        values[key] = _convert(hints[key], value, path)
    for name, f in fields.items():
        if (
            name not in values
            and f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
        ):
            raise ConfigError(f"{where + '.' if where else ''}{name} is required and missing.")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None


def _convert(hint: Any, value: object, path: str) -> Any:
    origin = get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(get_args(hint), value, path)
    if origin is Literal:
        if value not in get_args(hint):
            names = [str(a) for a in get_args(hint)]
            raise ConfigError(
                f"{path} must be one of {', '.join(names)}, got {value!r}. {nearest(str(value), names)}"
            )
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path} must be a list, got {value!r}.")
        return tuple(_convert(get_args(hint)[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} must be a table, got {value!r}.")
        return {str(k): _convert(get_args(hint)[1], v, f"{path}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_table(typing.cast(type, hint), value, path)
    return _convert_scalar(hint, value, path)


def _convert_scalar(hint: Any, value: object, path: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is a subclass of int: `steps = true` must not pass as 1.
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{path} must be {_name(hint)}, got {value!r}.")
    return value


def _convert_union(members: tuple[Any, ...], value: object, path: str) -> Any:
    if value is None and type(None) in members:
        return None
    members = tuple(m for m in members if m is not type(None))
    if len(members) == 1:
        return _convert(members[0], value, path)
    tagged = {m: _tag(m) for m in members if dataclasses.is_dataclass(m)}
    if len(tagged) == len(members) and isinstance(value, Mapping):
        tag_field = next(iter(tagged.values()))[0]
        choices: dict[str, Any] = {tag: m for m, (_, tag) in tagged.items()}
        if tag_field not in value:
            raise ConfigError(
                f"{path}.{tag_field} is required and missing. One of: {', '.join(sorted(choices))}."
            )
        if not isinstance(value[tag_field], str) or value[tag_field] not in choices:
            found = value[tag_field]
            raise ConfigError(f"{path}.{tag_field} {found!r} is not known. {nearest(str(found), choices)}")
        return from_table(choices[str(value[tag_field])], value, path)
    for member in members:
        try:
            return _convert(member, value, path)
        except ConfigError:
            continue
    raise ConfigError(f"{path} must be {' or '.join(_name(m) for m in members)}, got {value!r}.")


def _tag(cls: Any) -> tuple[str, str]:
    for name, hint in typing.get_type_hints(cls).items():
        if get_origin(hint) is Literal and len(get_args(hint)) == 1:
            return name, get_args(hint)[0]
    raise AssertionError(f"{cls} has no tag field")


def _name(hint: Any) -> str:
    return {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}.get(
        hint, str(hint)
    )


def to_table(value: Any) -> Any:
    """The inverse of `from_table`: nested plain dicts and lists, without the settings that are None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((f.name, to_table(getattr(value, f.name))) for f in dataclasses.fields(value))
        return {k: v for k, v in pairs if v is not None}
    if isinstance(value, tuple | list):
        return [to_table(v) for v in value]
    if isinstance(value, Mapping):
        return {k: to_table(v) for k, v in value.items()}
    return value


def set_dotted(table: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `a.b.c` in a nested table, making the tables on the way."""
    *parents, last = dotted.split(".")
    for depth, parent in enumerate(parents):
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(
                f"{'.'.join(parents[: depth + 1])} is a value, not a table; cannot set {dotted}."
            )
    table[last] = value


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two nested tables, in words; empty if nothing does."""
    old, new = flatten(before), flatten(now)
    differing = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    return ", ".join(f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in differing)


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}; used to say which settings differ."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
