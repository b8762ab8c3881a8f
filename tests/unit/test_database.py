"""Which database a setting means, and that no password is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.control.database import URL_VARIABLE, Database
from serving.errors import StartError

SETTING = "postgresql+psycopg://canarium:${DB_PASSWORD}@db.internal:5433/state?sslmode=verify-full"
ENVIRONMENT = {"DB_PASSWORD": "s3/c@ret %"}


def test_sqlite_is_a_file_of_the_state_directory() -> None:
    database = Database.of("sqlite", "/srv/state", {})
    assert database.path == Path("/srv/state/canarium.db")
    assert database.shown == "/srv/state/canarium.db"


def test_variables_of_the_environment_stand_in_the_url() -> None:
    database = Database.of(SETTING, ".", ENVIRONMENT)
    assert (database.path, database.url.password, database.url.port) == (None, "s3/c@ret %", 5433)
    assert database.url.drivername == Database.of("postgresql://h/d", ".", {}).url.drivername == "postgresql+psycopg"


def test_the_whole_url_can_come_from_the_environment() -> None:
    database = Database.of("sqlite", ".", {URL_VARIABLE: "postgresql://u:s3cret@h/other"})
    assert (database.url.database, database.url.password) == ("other", "s3cret")


def test_the_line_end_of_a_secret_is_no_part_of_it() -> None:
    assert Database.of("sqlite", ".", {URL_VARIABLE: "postgresql://h/other\n"}).url.database == "other"
    assert Database.of(SETTING, ".", {"DB_PASSWORD": " s3cret \r\n"}).url.password == " s3cret "
    assert Database.of("sqlite", "/srv/state", {URL_VARIABLE: "\n"}).path == Path("/srv/state/canarium.db")


def test_no_password_is_shown() -> None:
    database = Database.of(SETTING, ".", ENVIRONMENT)
    assert database.shown == "postgresql+psycopg://canarium:***@db.internal:5433/state?sslmode=verify-full"
    assert database.plain_url == "postgresql://canarium@db.internal:5433/state?sslmode=verify-full"
    assert "s3" not in repr(database.writer())


@pytest.mark.parametrize("form", ["s3/c@ret %", "s3%2Fc%40ret%20%25", "s3/c%40ret%20%25", "s3%2Fc%40ret %25"])
def test_a_drivers_words_lose_the_password_in_every_form(form: str) -> None:
    database = Database.of(SETTING, ".", ENVIRONMENT)
    assert database.redacted(f"could not connect\n\tas '{form}'") == "could not connect as '***'"


def test_passwords_among_the_options_are_hidden_too() -> None:
    given = {URL_VARIABLE: "postgresql://u@h/d?password=s3cret&sslpassword=0ther"}
    database = Database.of("sqlite", ".", given)
    assert "s3cret" not in database.shown + database.plain_url + database.redacted("s3cret")
    assert "0ther" not in database.shown + database.plain_url + database.redacted("0ther")


@pytest.mark.parametrize(
    ("setting", "environment", "message"),
    [
        (SETTING, {}, "state.database: the environment variable DB_PASSWORD is not set"),
        ("sqlite", {URL_VARIABLE: "mysql://u:s3cret@h/d"}, f"{URL_VARIABLE}: expected sqlite or postgresql"),
        ("sqlite", {URL_VARIABLE: "s3cret"}, f"{URL_VARIABLE}: not a URL such as postgresql"),
        ("sqlite", {URL_VARIABLE: "postgresql://u:s3cret@h:port/d"}, f"{URL_VARIABLE}: not a URL such as postgresql"),
        ("sqlite", {URL_VARIABLE: "postgresql://u:s3cret@h"}, f"{URL_VARIABLE}: expected sqlite or postgresql"),
    ],
)
def test_what_cannot_be_used_is_refused_without_its_values(
    setting: str, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(StartError) as caught:
        Database.of(setting, ".", environment)
    assert str(caught.value).startswith(message)
    assert "s3cret" not in str(caught.value)
