"""Names of projects."""

from __future__ import annotations

import re

import pytest

from forze.errors import ValidationError
from forze_cli.names import MAX_LENGTH, check_name, slug_of


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("shop", "shop"),
        ("s", "s"),
        ("my-shop", "my_shop"),
        ("My_Shop-2", "my_shop_2"),
        ("a--b__c", "a_b_c"),
        ("a" * MAX_LENGTH, "a" * MAX_LENGTH),
        ("calendar", "calendar"),
        ("sqlalchemy", "sqlalchemy"),  # no project needs it
        ("con", "con"),
    ],
)
def test_a_good_name(name: str, slug: str) -> None:
    assert check_name(name) == name
    assert slug_of(name) == slug


@pytest.mark.parametrize(
    ("name", "why", "better"),
    [
        ("", "it is empty", "my-shop"),
        ("1shop", "begins with a letter", "shop"),
        ("-shop", "begins with a letter", "shop"),
        (".shop", "begins with a letter", "shop"),
        ("shop-", "ends with", "shop"),
        ("my shop", "has letters", "my-shop"),
        ("shop\n", "has letters", "shop"),
        ("größe", "has letters", "gro-e"),
        ("ünïcode", "has letters", "unicode"),
        ("shop.py", "has letters", "shop-py"),
        ("{{ shop }}", "has letters", "shop"),
        ("..", "has letters", "my-shop"),
        ("../shop", "is a path", "shop"),
        ("/tmp/shop/", "is a path", "shop"),
        ("a\\shop", "is a path", "shop"),
        ("a" * (MAX_LENGTH + 1), f"has {MAX_LENGTH + 1} characters", "a" * MAX_LENGTH),
        ("class", "Python's own", "my-class"),
        ("None", "Python's own", "my-none"),
        ("Forze", "projects need", "my-forze"),
        ("pydantic_settings", "projects need", "my-pydantic_settings"),
        ("typing--extensions", "projects need", "my-typing--extensions"),
    ],
)
def test_a_bad_name_is_refused_and_a_good_one_suggested(name: str, why: str, better: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(why)) as refused:
        check_name(name)
    assert str(refused.value).endswith(f"; {better} would do")
    assert refused.value.field == "name"
    assert check_name(better) == better
