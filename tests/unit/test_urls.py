"""URLs: what install refuses of MongoDB's, compared with pymongo itself."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pymongo import MongoClient
from pymongo.common import get_validated_options
from pymongo.errors import InvalidURI, PyMongoError
from pymongo.uri_parser import parse_uri

from rts import ConfigurationError
from rts.ledger.connection import connect
from rts.mongo_urls import KINDS, mongo_url, refused_option
from rts.urls import redacted, redis_url, shown_url

GOOD = {
    "mongodb://localhost": "rts",
    "mongodb://localhost:27017/ledger": "ledger",
    "mongodb://localhost/": "rts",
    "mongodb://localhost?w=1": "rts",
    "mongodb://a:27017,b:27018,c/ledger?replicaSet=rs0": "ledger",
    "mongodb://a,[::1]:27017/ledger": "ledger",
    "mongodb://[::1]/ledger": "ledger",
    "mongodb://[2001:db8::1]:27017,[::1]/ledger": "ledger",
    "mongodb://[fe80::1%25eth0]:27017/ledger": "ledger",
    "mongodb://%2Ftmp%2Fmongodb-27017.sock/ledger": "ledger",
    "mongodb://%2Ftmp%2Fa:b.sock/ledger": "ledger",
    "mongodb://me:p%40ss@%2Ftmp%2Fmongodb-27017.sock,b:1/ledger": "ledger",
    "mongodb://me@host/ledger?authMechanism=MONGODB-X509": "ledger",
    "mongodb://me:@host/ledger?authMechanism=MONGODB-X509": "ledger",
    "mongodb://me:p%40s%2Fs%3Aw@host/ledger?authSource=admin": "ledger",
    # Characters that would end a web URL's authority.
    "mongodb://me:p#ss@host/ledger": "ledger",
    "mongodb://me:12#3@host/ledger": "ledger",
    "mongodb://host/ledger?tls=true;w=majority": "ledger",
    "mongodb://host/ledger?readPreference=secondary&readPreferenceTags=dc:a,rack:1": "ledger",
    "mongodb://host/ledger?": "ledger",
    "mongodb://host/led%67er": "ledger",
    f"mongodb://host/{63 * 'x'}.tasks": 63 * "x",
    "mongodb://host/ledger.tasks": "ledger",
    "mongodb://host:00027017/ledger": "ledger",
    "mongodb://host:65535/ledger": "ledger",
    "mongodb://HOST_with-odd.name/ledger": "ledger",
    "mongodb://100%25:%2B@host/ledger": "ledger",
}

BAD = {
    "mongodb://": "a host",
    "mongodb:///ledger": "a host",
    "mongodb://?w=1": "a host",
    "mongodb://a,/ledger": "a host",
    "mongodb://a,,b/ledger": "a host",
    "mongodb://me:secret@/ledger": "a host",
    "mongodb://host:port/ledger": "a port from 1 to 65535",
    "mongodb://host:/ledger": "a port from 1 to 65535",
    "mongodb://host:0/ledger": "a port from 1 to 65535",
    "mongodb://host:65536/ledger": "a port from 1 to 65535",
    "mongodb://host:-1/ledger": "a port from 1 to 65535",
    "mongodb://host:27017 /ledger": "a port from 1 to 65535",
    f"mongodb://host:{'9' * 5000}/ledger": "a port from 1 to 65535",
    "mongodb://host:²/ledger": "a port from 1 to 65535",
    "mongodb://::1:27017/ledger": "a port from 1 to 65535",
    "mongodb://[::1]:port/ledger": "a port from 1 to 65535",
    "mongodb://[::1:27017/ledger": r"IPv6 addresses as \[::1\]",
    "mongodb://me:se/cret@host/ledger": "as %23, %2F",
    "mongodb://me:secret?@host/ledger": "as %23, %2F",
    "mongodb://me:secr@t@host/ledger": "as %23, %2F",
    "mongodb://me:se:cret@host/ledger": "as %23, %2F",
    "mongodb://me:secret%@host/ledger": "as %23, %2F",
    "mongodb://me:%secret@host/ledger": "as %23, %2F",
    "mongodb://:secret@host/ledger": "as %23, %2F",
    "mongodb://@host/ledger": "as %23, %2F",
    "mongodb://host/led ger": "a database without",
    "mongodb://host/led/ger": "a database without",
    "mongodb://host/ledger/": "a database without",
    "mongodb://host/led$ger": "a database without",
    "mongodb://host/led%2Fger": "a database without",
    "mongodb://host/ledger?replicaSet": "options as",
    "mongodb://host/ledger?w=1&": "options as",
    "mongodb://host/ledger?w=1&tls=true;ssl=true": "options as",
    "mongodb://host/ledger?w=1&replicaSet=a;b": "options as",
    "mongodb://host/ledger?w=1=2": "options as",
    "mongodb+srv://": "a host",
    "mongodb+srv://a.example.org,b.example.org/ledger": "one host",
    "mongodb+srv://a.example.org:27017/ledger": "one host",
    "mongodb+srv://[::1]/ledger": "one host",
    "mongodb+srv://me:se/cret@a.example.org/ledger": "one host",
}


@pytest.mark.parametrize("url", GOOD)
def test_what_pymongo_accepts_is_accepted(url: str) -> None:
    parse_uri(url)
    assert mongo_url("rts_mongo_url", url) == url
    database = connect(url)
    assert database.name == GOOD[url]
    database.client.close()


@pytest.mark.parametrize("url", BAD)
def test_what_pymongo_does_not_accept_is_refused(url: str) -> None:
    with pytest.raises((PyMongoError, ValueError)):
        parse_uri(url)
    with pytest.raises(ConfigurationError, match=BAD[url]) as caught:
        mongo_url("rts_mongo_url", url)
    assert str(caught.value).startswith("rts_mongo_url = 'mongodb")
    assert "cret" not in str(caught.value)


def test_a_name_that_is_too_long_for_a_database_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at most 63 bytes"):
        mongo_url("rts_mongo_url", f"mongodb://host/{32 * 'é'}")


WRONG_OPTIONS = {
    "retryWrites=maybe": ("retryWrites", "maybe", "true or false"),
    "tls=True": ("tls", "True", "true or false"),
    "w=1&TLS=perhaps": ("TLS", "perhaps", "true or false"),
    "w=1;ssl=1": ("ssl", "1", "true or false"),
    "w=-1": ("w", "-1", "a whole number, at least 1, majority, or a name"),
    # pymongo accepts it, and a record that was not stored would leave the outbox.
    "w=0": ("w", "0", "a whole number, at least 1, majority, or a name"),
    "serverSelectionTimeoutMS=-5": (
        *("serverSelectionTimeoutMS", "-5", "milliseconds, at least 0"),
    ),
    "heartbeatFrequencyMS=10": ("heartbeatFrequencyMS", "10", "milliseconds, at least 500"),
    "maxPoolSize=many": ("maxPoolSize", "many", "a whole number, at least 0"),
    "readPreference=fast%21": (
        *("readPreference", "fast!"),
        "primary, primaryPreferred, secondary, secondaryPreferred, nearest",
    ),
    "appName=" + "x" * 200: ("appName", "***", "at most 128 bytes"),
    # Of a password, maybe, that should have been quoted.
    "tls=cret@host": ("tls", "***", "true or false"),
    "tls=%00": ("tls", "***", "true or false"),
}


@pytest.mark.parametrize("options", WRONG_OPTIONS)
def test_an_invalid_option_is_refused_with_what_is_allowed(options: str) -> None:
    name, shown, allowed = WRONG_OPTIONS[options]
    with pytest.raises(ConfigurationError) as caught:
        mongo_url("rts_mongo_url", f"mongodb://me:secret@host/ledger?{options}")
    assert str(caught.value) == (
        f"rts_mongo_url, option {name} = {shown!r} is not valid; allowed: {allowed}"
    )


@given(
    st.sampled_from(sorted(KINDS)),
    st.one_of(
        st.text(alphabet="0123456789-+.e _", max_size=6),
        st.sampled_from(
            ["true", "false", "True", "", "nan", "inf", "1e9", "nearest", "x" * 99]
        ),
        st.integers(-2, 1000).map(str),
        st.text(max_size=140),
    ),
)
@example("heartbeatfrequencyms", "500.0")
@example("heartbeatfrequencyms", "499.9")
@example("connecttimeoutms", "0.0")
@example("connecttimeoutms", "00")
@example("maxpoolsize", "1_000")
@example("appname", "\u00e9" * 65)
def test_options_are_refused_as_pymongo_refuses_them(name: str, value: str) -> None:
    try:
        if name == "heartbeatfrequencyms":  # its minimum is checked only where it is used
            MongoClient[Any](connect=False, heartbeatFrequencyMS=value).close()
        options = get_validated_options({name: value}, warn=False)
        taken = options.get("w") != 0
    except (PyMongoError, ValueError, TypeError):
        taken = False
    assert (refused_option(name, value) is None) is taken


def test_unlisted_options_are_accepted() -> None:
    for option in ("authMechanism=ROT13", "compressors=zstd", "new=1", "replicaSet=rs0"):
        url = f"mongodb://host/ledger?{option}"
        assert mongo_url("rts_mongo_url", url) == url


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("tls=true&ssl=false", "conflicting values"),
        ("directConnection=true&loadBalanced=true", "directConnection"),
        # pymongo's wording depends on its version, and that on Python's.
        ("tls=true&tlsCAFile=/no/such.pem", "tlscafile file is not readable|No such file"),
        # The driver's own message holds the secret.
        ("tlsCAFile=/no.pem&tlsCertificateKeyFilePassword=file", "FileNotFoundError"),
    ],
)
def test_what_only_pymongo_refuses_is_reported_with_its_reason_and_no_secret(
    options: str, reason: str
) -> None:
    url = f"mongodb://me:sec%2Fret@host/ledger?{options}"
    assert mongo_url("rts_mongo_url", url) == url
    with pytest.raises(InvalidURI, match=reason) as caught:
        connect(url)
    assert not any(s in str(caught.value) for s in ("sec/ret", "sec%2Fret"))


def test_a_message_in_which_the_password_may_be_is_not_shown() -> None:
    with pytest.raises(InvalidURI, match=r"is not valid \(\w+\)$"):
        connect("mongodb://me:fil%65@host/ledger?tlsCAFile=/no.pem")


@pytest.mark.parametrize("separator", "&;")
@pytest.mark.parametrize(
    ("option", "concern"),
    [("w=1", {"w": 1}), ("journal=false", {"j": False}), ("wTimeoutMS=5", {"wtimeout": 5})],
)
def test_a_write_concern_in_the_url_is_kept_as_it_is(
    option: str, concern: dict[str, Any], separator: str
) -> None:
    database = connect(f"mongodb://host/ledger?tls=true{separator}{option}")
    assert database.write_concern.document == concern
    database.client.close()


@pytest.mark.parametrize("option", ["j=true", "wtimeout=5"])
def test_names_of_options_that_pymongo_no_longer_knows_are_no_write_concern(
    option: str,
) -> None:
    with pytest.warns(UserWarning, match="Unknown option"):
        database = connect(f"mongodb://host/ledger?{option}")
    assert database.write_concern.document["w"] == "majority"
    database.client.close()


def test_hosts_that_dns_names_are_not_looked_up() -> None:
    url = "mongodb+srv://me:p%40ss@cluster0.example.org/ledger?retryWrites=true&w=majority"
    assert mongo_url("rts_mongo_url", url) == url
    assert mongo_url("rts_mongo_url", "mongodb+srv://cluster0.example.org")


@given(st.text(alphabet="ab1:@/,?&;=%2F.[]#$ +\\", max_size=24))
@example("me:p%f+@host")
@example("a,[::1]:1/b.c$")
@example("a?b=c d=e")
def test_nothing_that_pymongo_accepts_is_refused(rest: str) -> None:
    url = "mongodb://" + rest
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about options that it does not know
            connect(url).client.close()
    except (PyMongoError, ValueError):
        return
    assert mongo_url("rts_mongo_url", url) == url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@host:6380/2?password=secret", "redis://host:6380/2"),
        ("unix://:secret@/tmp/redis.sock?db=1", "unix:///tmp/redis.sock"),
        ("rediss://host", "rediss://host"),
        # Characters that should have been quoted in a password.
        ("mongodb://me:se/cret@host:27017/rts", "mongodb://host:27017/rts"),
        ("redis://:se#cret@host/0", "redis://***"),
        ("redis://host/0?password=se@cret", "redis://***"),
    ],
)
def test_urls_are_shown_without_secrets(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("amqp://me:secret@host:5672/0", "amqp://***@host:5672/0"),
        ("redis://:se/cret@host:6379/0", "redis://***@host:6379/0"),
        ("redis://:a://secret@host:6379/0", "redis://***@host:6379/0"),
        ("redis://:se#cret@host/0", "redis://***"),
        ("redis://host/x?password=se@cret", "redis://***"),
        ("redis://host:99999/0?password=secret", "redis://host:99999/0?***"),
        # Not the number of a database.
        ("redis://a:6379/3;redis://b:6379/3", "redis://a:6379/3;redis://b:6379/3"),
        ("redis://:secret@a/3;redis://:secret@b/3", "redis://***@b/3"),
        ("redis://host/rts", "redis://host/rts"),
        # The host, or the scheme, is missing.
        ("redis://:secret", "redis://:***"),
        ("mongodb://a:27017,me:secret/ledger", "mongodb://a:27017,me:***/ledger"),
        ("me:secret@host/0", "***@host/0"),
        ("localhost:27017", "localhost:27017"),
        (["redis://:secret@host/0"], "a list"),
        (7, 7),
    ],
)
def test_what_is_refused_is_shown_without_secrets(value: object, shown: object) -> None:
    assert redacted(value) == shown
    with pytest.raises(ConfigurationError) as caught:
        redis_url("rts_redis_url", value)
    assert str(caught.value).startswith(f"rts_redis_url = {shown!r} is not valid; ")
