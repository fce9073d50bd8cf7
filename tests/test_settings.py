"""Tables to dataclasses and back: what is refused, and with which words."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from understudy.errors import ConfigError
from understudy.settings import flatten, from_table, nearest, set_dotted, to_table


@dataclass(frozen=True, kw_only=True)
class Cat:
    kind: Literal["cat"]
    lives: int = 9


@dataclass(frozen=True, kw_only=True)
class Dog:
    kind: Literal["dog"]
    tricks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class House:
    rooms: int
    height: float = 2.5
    is_old: bool = False
    name: str | None = None
    pet: Cat | Dog | None = None
    color: Literal["red", "green"] = "red"
    sizes: tuple[float, ...] = ()
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)


def test_values_defaults_and_nesting():
    house = from_table(
        House, {"rooms": 3, "height": 2, "pet": {"kind": "dog", "tricks": ["sit"]}, "sizes": [1, 2.5]}
    )
    assert house == House(rooms=3, height=2.0, pet=Dog(kind="dog", tricks=("sit",)), sizes=(1.0, 2.5))
    assert type(house.height) is float
    assert all(type(size) is float for size in house.sizes)


def test_a_table_reads_back_and_leaves_out_what_is_none():
    house = House(rooms=1, pet=Cat(kind="cat"), notes={"hall": {"a.b": 1, "c": [True]}})
    table = to_table(house)
    assert "name" not in table
    assert from_table(House, table) == house


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"rooms": 3, "heigth": 2.0}, r"^heigth is not a setting\. Did you mean height\?$"),
        ({"rooms": 3, "zzz": 2.0}, r"^zzz is not a setting\. Valid names: color, height, .*sizes\.$"),
        (
            {"rooms": 3, "pet": {"kind": "cat", "live": 1}},
            r"^pet\.live is not a setting\. Did you mean lives\?$",
        ),
        ({}, r"^rooms is required and missing\.$"),
        ({"rooms": "3"}, r"^rooms must be a whole number, got '3'\.$"),
        ({"rooms": 3.5}, r"^rooms must be a whole number, got 3\.5\.$"),
        ({"rooms": True}, r"^rooms must be a whole number, got True\.$"),
        ({"rooms": 3, "height": True}, r"^height must be a number, got True\.$"),
        ({"rooms": 3, "is_old": 1}, r"^is_old must be true or false, got 1\.$"),
        ({"rooms": 3, "name": 5}, r"^name must be a string, got 5\.$"),
        (
            {"rooms": 3, "color": "gren"},
            r"^color must be one of red, green, got 'gren'\. Did you mean green\?$",
        ),
        ({"rooms": 3, "sizes": 2.0}, r"^sizes must be a list, got 2\.0\.$"),
        ({"rooms": 3, "sizes": [1, "b"]}, r"^sizes\[1\] must be a number, got 'b'\.$"),
        ({"rooms": 3, "notes": 1}, r"^notes must be a table, got 1\.$"),
        ({"rooms": 3, "pet": {"lives": 3}}, r"^pet\.kind is required and missing\. One of: cat, dog\.$"),
        ({"rooms": 3, "pet": {"kind": "dgo"}}, r"^pet\.kind 'dgo' is not known\. Did you mean dog\?$"),
        # The tag chooses the table: a setting of the other one is unknown here.
        (
            {"rooms": 3, "pet": {"kind": "dog", "lives": 3}},
            r"^pet\.lives is not a setting\. Valid names: kind, tricks\.$",
        ),
        ([1], r"^the recipe must be a table of settings, got \[1\]\.$"),
    ],
)
def test_refusals_name_the_setting_and_what_would_do(table, message):
    with pytest.raises(ConfigError, match=message):
        from_table(House, table)


def test_dotted_names_make_the_tables_on_the_way():
    table: dict[str, Any] = {"a": {"b": 1}}
    set_dotted(table, "a.c.d", 2)
    assert table == {"a": {"b": 1, "c": {"d": 2}}}
    with pytest.raises(ConfigError, match=r"a\.b is a value, not a table; cannot set a\.b\.x\."):
        set_dotted(table, "a.b.x", 1)


def test_flatten_is_the_inverse_of_dotted_names():
    table = {"a": {"b": 1, "c": {"d": [2]}}, "e": {}}
    assert flatten(table) == {"a.b": 1, "a.c.d": [2], "e": {}}


def test_the_nearest_name_or_all_of_them():
    assert nearest("stepz", ["steps", "batch_size"]) == "Did you mean steps?"
    assert nearest("q", ["b", "a"]) == "Valid names: a, b."
