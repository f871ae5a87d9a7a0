"""The pages of a login: what they show, where they lead, and how often one may guess."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest
from logins import CODE_PAGE, COMPUTE, NATIVE, Browser, done, problem_in, refused
from sqlalchemy import func, select, update

from farcall.errors import ConfigurationError
from farcall_webservice import auth
from farcall_webservice.models import LoginFailure, User
from farcall_webservice.oauth import clients, passwords, sweeping

if TYPE_CHECKING:
    from conftest import Person, Service

PASSWORD = "correct horse"


@pytest.fixture
def browser(service: Service) -> Browser:
    return Browser(service.app)


@pytest.fixture
def ada_by_password(service: Service, ada: Person) -> Person:
    passwords.set_password(service.database, "ada", PASSWORD)
    return ada


def error_in(location: str) -> str:
    return parse_qs(urlsplit(location).query)["error"][0]


# -- what is shown ----------------------------------------------------------------------------------------------------


def test_the_page_says_who_asks_for_what_and_carries_the_request(browser: Browser) -> None:
    page = browser.ask_to_log_in()

    assert page.status_code == 200
    assert "Globus Compute" in page.text and "laptop on laptop" in page.text
    assert "run tasks" in page.text and COMPUTE not in re.sub("<input[^>]*>", "", page.text)
    assert f'name="client_id" value="{NATIVE}"' in page.text
    assert 'name="state" value="_default"' in page.text
    assert "Set-Cookie" not in page.headers


def test_nothing_on_the_pages_comes_from_elsewhere_or_can_run_or_be_framed(browser: Browser) -> None:
    for page in (
        browser.ask_to_log_in(),
        browser.get("/auth/v2/web/auth-code?code=x"),
        browser.ask_to_log_in(scope=""),
    ):
        policy = page.headers["Content-Security-Policy"] if page.status_code != 303 else "default-src 'none'"
        assert policy.startswith("default-src 'none'")
        assert "script" not in page.text and "http" not in re.sub("<input[^>]*>", "", page.text)
    page = browser.ask_to_log_in()
    assert "form-action 'self' http://localhost;" in page.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("name", ["state", "prefill_named_grant"])
def test_what_a_link_brings_is_shown_as_text(browser: Browser, name: str) -> None:
    evil = "\"><script>alert('x')</script>"

    page = browser.log_in(evil, "", **{name: evil})

    assert "<script>" not in page.text and "&lt;script&gt;" in page.text


def test_the_code_page_shows_a_code_or_the_reason_as_text(browser: Browser) -> None:
    code = browser.get("/auth/v2/web/auth-code", query_string={"code": '"><script>'})
    reason = browser.get("/auth/v2/web/auth-code", query_string={"error": "e", "error_description": "<script>"})
    nothing = browser.get("/auth/v2/web/auth-code")

    assert "readonly" in code.text and "<script>" not in code.text + reason.text
    assert problem_in(reason) == "&lt;script&gt;"
    assert "There is no code here" in nothing.text


# -- where it leads ---------------------------------------------------------------------------------------------------


def test_a_login_leads_to_the_code_page_with_the_state_and_forgets_the_form(browser: Browser, ada: Person) -> None:
    answer = browser.log_in("ada", ada.token, state="s 1&x=2")

    assert answer.status_code == 303
    assert answer.location.startswith(CODE_PAGE + "?")
    query = parse_qs(urlsplit(answer.location).query)
    assert query["state"] == ["s 1&x=2"] and len(query["code"][0]) == 32
    assert answer.headers["Cache-Control"] == "no-store"
    assert query["code"][0] in browser.get(answer.location).text


@pytest.mark.parametrize(
    "redirect_uri",
    [
        "http://localhost:41234/",
        "http://127.0.0.1:80/callback?x=1",
        "http://[::1]:9/",
        "https://localhost" + CODE_PAGE[16:],
    ],
)
def test_programs_on_the_same_machine_and_our_own_page_may_be_led_to(
    browser: Browser, ada: Person, redirect_uri: str
) -> None:
    answer = browser.log_in("ada", ada.token, redirect_uri=redirect_uri)

    assert answer.location.startswith(redirect_uri)


@pytest.mark.parametrize(
    "redirect_uri",
    [
        "https://evil.example/",
        "http://evil.example/auth/v2/web/auth-code",
        "http://localhost@evil.example/",
        "http://localhost.evil.example/",
        "http://127.0.0.1.evil.example/",
        "http://user@localhost/",
        "https://localhost/elsewhere",
        "http://localhost:99999/",
        "http://localhost:x/",
        "http://[localhost/",
        "http://10.0.0.1/",
        "javascript:alert(1)",
        "//localhost/",
        "http://localhost/#fragment",
        "http://[::1%x; frame-ancestors *;y]/",
        "http://[::1]evil.example/",
        "http://[::1].evil.example/",
        "http://[fe80::1]/",
        # Our own page by another address, and with more behind it.
        "http://farcall.example.org/auth/v2/web/auth-code",
        "https://localhost/auth/v2/web/auth-code?more=1",
    ],
)
def test_nobody_is_led_elsewhere(browser: Browser, ada: Person, redirect_uri: str) -> None:
    for answer in (
        browser.ask_to_log_in(redirect_uri=redirect_uri),
        browser.log_in("ada", ada.token, redirect_uri=redirect_uri),
    ):
        assert (answer.status_code, answer.location) == (400, None)
        assert "Redirect URI" in problem_in(answer)


def test_our_own_page_is_known_by_the_public_address(service: Service, ada: Person) -> None:
    browser = Browser(service.app)
    page = "https://farcall.example.org/auth/v2/web/auth-code"
    assert browser.ask_to_log_in(redirect_uri=page).status_code == 400

    with service.public_url("https://farcall.example.org"):
        assert browser.ask_to_log_in(redirect_uri=page).status_code == 200
        issuer = done(browser.get("/auth/.well-known/openid-configuration"))["issuer"]

    assert issuer == "https://farcall.example.org/auth"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"scope": "nonsense"}, "invalid_scope"),
        ({"code_challenge": None, "code_challenge_method": None}, "invalid_request"),
        ({"code_challenge_method": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge": "short"}, "invalid_request"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"decision": "deny"}, "access_denied"),
        ({"decision": ""}, "access_denied"),
    ],
)
def test_the_client_hears_of_its_mistakes_and_of_a_refusal(
    browser: Browser, ada: Person, changes: dict[str, str | None], error: str
) -> None:
    answer = browser.log_in("ada", ada.token, **changes)

    assert answer.status_code == 303
    assert answer.location.startswith(CODE_PAGE)
    assert error_in(answer.location) == error
    assert "code=" not in answer.location.replace("error_code", "")
    assert parse_qs(urlsplit(answer.location).query)["state"] == ["_default"]


@pytest.mark.parametrize("client_id", ["nonsense", "11111111-1111-1111-1111-111111111111", None])
def test_an_unknown_client_is_a_page_that_says_so(browser: Browser, client_id: str | None) -> None:
    page = browser.ask_to_log_in(client_id=client_id)

    assert (page.status_code, page.mimetype) == (400, "text/html")
    assert "client" in problem_in(page)


def test_a_client_without_pages_of_its_own_logs_nobody_in(service: Service, browser: Browser) -> None:
    client_id, _ = clients.create(service.database, "robot")

    assert browser.ask_to_log_in(client_id=client_id).status_code == 400
    assert browser.ask_to_log_in(client_id=client_id, redirect_uri="http://localhost:1/").status_code == 400


@pytest.mark.parametrize(
    "uri", ["http://site.example.org/", "ftp://x/", "https://", "https://a;b/", "https://a b/", "x"]
)
def test_a_page_that_cannot_be_led_to_is_not_registered(service: Service, uri: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be a redirect URI"):
        clients.create(service.database, "site", redirect_uris=[uri])


# -- who is let in ----------------------------------------------------------------------------------------------------


def test_a_password_logs_in_and_only_a_slow_hash_is_kept(
    service: Service, browser: Browser, ada_by_password: Person
) -> None:
    tokens = done(browser.exchange(browser.code("ada", PASSWORD)))

    assert done(browser.userinfo(tokens["access_token"]))["sub"] == ada_by_password.id
    with service.database.reading() as connection:
        kept = connection.execute(select(User.password_hash)).scalar_one()
    assert kept.startswith("scrypt:") and PASSWORD not in kept


@pytest.mark.parametrize(
    ("name", "secret"),
    [("ada", "wrong horse"), ("eve", PASSWORD), ("bob", ""), ("bob", "x"), ("", PASSWORD), ("a\0da", PASSWORD)],
)
def test_others_are_not_let_in_and_not_told_which_of_the_two_is_wrong(
    browser: Browser, ada_by_password: Person, bob: Person, name: str, secret: str
) -> None:
    page = browser.log_in(name, secret)

    assert page.status_code in (400, 403)
    assert problem_in(page)
    if page.status_code == 403:
        assert problem_in(page) == "That name and that password or token do not belong together."
    assert f'value="{secret}"' not in page.text or not secret


def test_a_token_lets_in_its_own_user_alone(service: Service, browser: Browser, ada: Person, bob: Person) -> None:
    assert browser.log_in("ada", bob.token).status_code == 403
    tokens = done(browser.exchange(browser.code("ada", ada.token)))

    # Neither does one that a client was given, or that was revoked.
    for each in (tokens, *tokens["other_tokens"]):
        assert browser.log_in("ada", each["access_token"]).status_code == 403
    auth.revoke_token(service.database, auth.tokens(service.database)[0].id)
    assert browser.log_in("ada", ada.token).status_code == 403


def test_a_login_by_a_token_goes_on_no_longer_than_the_token(service: Service, browser: Browser, ada: Person) -> None:
    by_token = done(browser.exchange(browser.code("ada", ada.token)))["refresh_token"]
    passwords.set_password(service.database, "ada", PASSWORD)
    by_password = done(browser.exchange(browser.code("ada", PASSWORD)))["refresh_token"]
    done(browser.refresh(by_token))

    auth.revoke_token(service.database, auth.tokens(service.database)[0].id)

    assert "log in again" in refused(browser.refresh(by_token), 400, "invalid_grant")
    done(browser.refresh(by_password))


def test_after_some_failures_each_one_makes_the_next_wait_longer(
    service: Service, browser: Browser, ada_by_password: Person
) -> None:
    for _ in range(passwords.FREE_ATTEMPTS):
        assert browser.log_in("ada", "wrong").status_code == 403

    blocked = browser.log_in("ada", PASSWORD)

    assert (blocked.status_code, blocked.headers["Retry-After"]) == (429, "2")
    assert problem_in(blocked) == "Too many failed attempts. Try again in 2 seconds."
    # A token cannot be guessed: its owner is not locked out by somebody else's attempts.
    assert browser.log_in("ada", ada_by_password.token).status_code == 303
    with service.database.writing() as connection:
        connection.execute(update(LoginFailure).values(blocked_until=time.time() - 1))
    assert browser.log_in("ada", "wrong").status_code == 403
    assert browser.log_in("ada", PASSWORD).headers["Retry-After"] == "4"


def test_a_success_clears_the_count_and_so_do_a_day_and_a_new_password(
    service: Service, browser: Browser, ada_by_password: Person
) -> None:
    def failures() -> list[int]:
        with service.database.reading() as connection:
            return list(connection.execute(select(LoginFailure.failures)).scalars())

    browser.log_in("ada", "wrong")
    browser.log_in("ada", "wrong")
    assert failures() == [2]
    browser.log_in("ada", PASSWORD)
    assert failures() == []

    browser.log_in("ada", "wrong")
    passwords.set_password(service.database, "ada", "another one")
    assert failures() == []

    browser.log_in("ada", "wrong")
    with service.database.writing() as connection:
        connection.execute(update(LoginFailure).values(failures=50, last_at=time.time() - 2 * 86_400))
    browser.log_in("ada", "wrong")
    assert failures() == [1]
    with service.database.writing() as connection:
        connection.execute(update(LoginFailure).values(last_at=time.time() - 2 * 86_400))
    sweeping.sweep(service.database)
    assert failures() == []


def test_many_attempts_at_once_are_no_more_than_as_many_in_turn(service: Service, ada_by_password: Person) -> None:
    together = threading.Barrier(12)

    def guess(number: int) -> int:
        together.wait()
        return Browser(service.app).log_in("ada", f"guess {number}").status_code

    with ThreadPoolExecutor(12) as threads:
        statuses = sorted(threads.map(guess, range(12)))

    assert statuses == [403] * passwords.FREE_ATTEMPTS + [429] * (12 - passwords.FREE_ATTEMPTS)


def test_a_name_that_nobody_has_is_slowed_down_just_the_same(service: Service, browser: Browser) -> None:
    statuses = [browser.log_in("nobody", "guess").status_code for _ in range(passwords.FREE_ATTEMPTS + 1)]

    assert statuses == [403] * passwords.FREE_ATTEMPTS + [429]
    with service.database.reading() as connection:
        assert connection.execute(select(func.count()).select_from(LoginFailure)).scalar_one() == 1


def test_the_wait_grows_to_a_quarter_of_an_hour_and_no_further() -> None:
    waits = [passwords.wait_after(failures) for failures in (1, 4, 5, 6, 7, 13, 14, 1000)]

    assert waits == [0, 0, 2, 4, 8, 512, 900, 900]


@pytest.mark.parametrize("password", ["", "short", "x" * 1025])
def test_a_password_has_a_length(service: Service, ada: Person, password: str) -> None:
    with pytest.raises(ConfigurationError, match="a password has 8 to 1024 characters"):
        passwords.set_password(service.database, "ada", password)


def test_a_password_of_nobody_is_not_kept(service: Service) -> None:
    with pytest.raises(ConfigurationError, match="there is no user 'nobody'"):
        passwords.set_password(service.database, "nobody", PASSWORD)
