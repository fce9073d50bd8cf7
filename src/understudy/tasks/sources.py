"""Where rows of text data come from: JSON Lines files and data sets of the hub. Bad input is named by file
and line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class RawRow:
    """One row as it was found. `where` says where, for messages; `index` counts from 0 over the rows of the
    source."""

    where: str
    index: int
    fields: Mapping[str, Any]


def read_jsonl(path: str | Path) -> list[RawRow]:
    """Every row of a JSON Lines file (UTF-8, one object a line, blank lines skipped).

    Raises:
        DataError: no such file (with the nearest name there is), unreadable, empty, or a malformed line.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(missing(path))
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}. Give a JSON Lines file.") from None
    rows: list[RawRow] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            rows.append(RawRow(where=where, index=len(rows), fields=_parse(line, where)))
    if not rows:
        raise DataError(f"{path} has no rows. Expected one JSON object a line.")
    return rows


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 (byte {error.start + 1} of the line). Save the file as UTF-8."
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON ({error.msg}, column {error.colno}). Expected one object a line."
        ) from None
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or brackets nested thousands deep.
        raise DataError(
            f"{where}: JSON that cannot be read ({error}). Expected one flat object a line."
        ) from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object such as {{...}}, found {_kind(row)}.")
    return row


def read_hub(dataset: str, config: str | None, split: str) -> list[RawRow]:
    """Every row of one split of a data set, through `datasets.load_dataset` (a hub name or a local folder).

    Raises:
        ConfigError: the `datasets` package is not installed.
        DataError: the data set, config or split cannot be loaded, or has no rows.
    """
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise ConfigError(
            f"the data set {dataset} is read through the `datasets` package, which is not installed. "
            "Install understudy[datasets], or give local files."
        ) from None
    where = f"{dataset} ({config}), split {split}" if config else f"{dataset}, split {split}"
    try:
        found = load_dataset(dataset, config, split=split)
    except (DatasetsError, OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"cannot load {where}: {reason}. Check the name and the network, or give local files."
        ) from None
    rows = [RawRow(where=f"{where}, row {i}", index=i, fields=dict(row)) for i, row in enumerate(found)]
    if not rows:
        raise DataError(f"{where} has no rows.")
    return rows


def rows_of_set(rows: list[RawRow], name: str) -> list[RawRow]:
    """The rows whose field `set` is the name of an evaluation set; "": those without one, which are of the recipe's own task.

    Raises:
        DataError: there are none.
    """
    found = [row for row in rows if (row.fields.get("set") or "") == name]
    if not found:
        there = sorted({str(row.fields.get("set") or "") for row in rows} - {""})
        wanted = f"of the set {name!r}" if name else "without a set"
        raise DataError(
            f"{rows[0].where}: the file has no row {wanted}. Its field 'set' says: {', '.join(there) or 'nothing'}. "
            "Choose with --of-set."
        )
    return found


def text_field(row: RawRow, field: str) -> str:
    """A field that must hold text a tokenizer can take.

    Raises:
        DataError: missing (with the nearest field there is), not text, or not valid Unicode.
    """
    if field not in row.fields:
        raise DataError(f"{row.where}: no field {field!r}. {fields_there(row, field)}")
    return valid_text(row.fields[field], f"{row.where}: {field}")


def valid_text(value: object, what: str) -> str:
    """The value, if it is text that UTF-8 can hold; `what` begins the message otherwise."""
    if not isinstance(value, str):
        raise DataError(f"{what} must be text, found {_kind(value)}. Write it in quotes.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} has half of a surrogate pair at character {error.start + 1}. Repair the text."
        ) from None
    return value


def fields_there(row: RawRow, wanted: str) -> str:
    """The fields a row has, with the one that is nearest to the wanted name first."""
    names = [str(name) for name in row.fields]
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"The row has {', '.join(map(repr, sorted(names))) or 'no fields'}.{hint}"


def missing(path: Path) -> str:
    """What to say about a path that is not there: the nearest name that is."""
    if not path.parent.is_dir():
        return f"no such file or folder: {path} (the folder {path.parent} does not exist either)."
    near = difflib.get_close_matches(
        path.name, sorted(p.name for p in path.parent.iterdir()), n=1, cutoff=0.5
    )
    return f"no such file or folder: {path}." + (f" Did you mean {path.parent / near[0]}?" if near else "")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(
        type(value), f"the number {value!r}" if isinstance(value, int | float) else type(value).__name__
    )
