"""Who may call what, and how often."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from baguni.domain.errors import InvalidInputError
from server.edge.callers import (
    Callers,
    ForbiddenError,
    Permission,
    RateLimitedError,
    TokenBucket,
    UnauthenticatedError,
    token_hash,
)

SHOP = f"""
[shop]
token_sha256 = "{token_hash("the-shop's")}"
permissions = ["online"]
requests_per_s = 2
burst = 3

[crm]
certificate_names = ["crm.internal"]
permissions = ["bulk", "admin"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "callers.toml"
    path.write_text(SHOP)
    return path


def test_without_a_file_everybody_may_do_everything() -> None:
    assert Callers(None).admit("", (), Permission.ADMIN) == ""


def test_a_caller_is_known_by_its_token_or_its_certificate(file: Path) -> None:
    callers = Callers(file)
    assert callers.admit("Bearer the-shop's", (), Permission.ONLINE) == "shop"
    assert callers.admit("bearer the-shop's", (), Permission.ONLINE) == "shop"
    assert callers.admit("", ["other", "crm.internal"], Permission.BULK) == "crm"


@pytest.mark.parametrize("authorization", ["", "Bearer ", "Bearer another", "Basic the-shop's", "the-shop's"])
def test_anybody_else_is_unauthenticated_and_is_not_told_what_it_sent(file: Path, authorization: str) -> None:
    with pytest.raises(UnauthenticatedError) as failure:
        Callers(file).admit(authorization, ["crm.external"], Permission.ONLINE)
    assert "another" not in str(failure.value)


def test_a_token_that_is_wrong_is_not_forgiven_for_a_certificate_that_is_right(file: Path) -> None:
    with pytest.raises(UnauthenticatedError):
        Callers(file).admit("Bearer another", ["crm.internal"], Permission.BULK)


def test_a_caller_may_do_what_it_has_the_permission_for(file: Path) -> None:
    with pytest.raises(ForbiddenError, match=r"caller shop .* needs the permission bulk, and has online"):
        Callers(file).admit("Bearer the-shop's", (), Permission.BULK)


def test_a_caller_that_asks_too_often_is_told_when_it_may_again(file: Path) -> None:
    callers = Callers(file)
    for _ in range(3):
        callers.admit("Bearer the-shop's", (), Permission.ONLINE)
    with pytest.raises(RateLimitedError) as failure:
        callers.admit("Bearer the-shop's", (), Permission.ONLINE)
    assert 0 < failure.value.retry_after_s <= 0.5
    assert callers.admit("", ["crm.internal"], Permission.BULK) == "crm"  # others are not held back


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    time_s = 0.0
    bucket = TokenBucket(10.0, 5.0, clock=lambda: time_s)
    taken = 0
    for tenth in range(100):  # 10 s
        time_s = tenth / 10
        taken += sum(bucket.take() == 0 for _ in range(3))
    assert taken == pytest.approx(5 + 9.9 * 10, abs=1)


def test_a_file_that_changes_is_read_again_and_one_that_breaks_changes_nothing(file: Path) -> None:
    callers = Callers(file)
    file.write_text(SHOP.replace("the-shop", "x").replace(token_hash("the-shop's"), token_hash("renewed")))
    os.utime(file, ns=(1, 1))
    callers.reload()
    assert callers.admit("Bearer renewed", (), Permission.ONLINE) == "shop"
    file.write_text("[shop")
    callers.reload()
    assert callers.admit("Bearer renewed", (), Permission.ONLINE) == "shop"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[shop", "callers"),
        ('[shop]\ntoken_sha256 = "abc"\npermissions = ["online"]', "shop.token_sha256"),
        ('[shop]\npermissions = ["online"]', "neither token_sha256 nor certificate_names"),
        ('[shop]\ncertificate_names = ["a"]\npermissions = []', "shop.permissions"),
        ('[shop]\ncertificate_names = ["a"]\npermissions = ["root"]', "'online', 'bulk' or 'admin'"),
        ('[shop]\ncertificate_names = ["a"]\npermissions = ["bulk"]\nrequests_per_s = 0', "requests_per_s"),
        ('[shop]\ncertificate_names = ["a"]\npermissions = ["bulk"]\npassword = "x"', "shop.password"),
        ("".join(f'[{name}]\ncertificate_names = ["n"]\npermissions = ["bulk"]\n' for name in "ab"), "a and b"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_says_where(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "callers.toml"
    path.write_text(content)
    with pytest.raises(InvalidInputError, match="callers") as failure:
        Callers(path)
    assert said in str(failure.value)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"none\.toml"):
        Callers(tmp_path / "none.toml")
