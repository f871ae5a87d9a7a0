"""The pages of a login: what they show, where they lead, and how often one may guess."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import parse_qs, urlsplit

import pytest
from logins import CODE_PAGE, COMPUTE, NATIVE, Browser, done, login_request, problem_in, refused
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import OperationalError

from farcall.errors import ConfigurationError
from farcall_webservice import auth
from farcall_webservice.models import LoginFailure, User
from farcall_webservice.oauth import clients, guessing, pages, passwords, routes, sweeping

if TYPE_CHECKING:
    from conftest import Person, Service

PASSWORD = "correct horse"
FREE_ATTEMPTS = guessing.OF_NAME.free_attempts


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> float:
    """For whoever guesses time stands still: on a slow machine the wait would be over before the next guess."""
    now = time.time()
    monkeypatch.setattr(guessing, "time", SimpleNamespace(time=lambda: now))
    return now


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
    login, code = browser.ask_to_log_in(), browser.get("/auth/v2/web/auth-code?code=x")
    refused = browser.ask_to_log_in(client_id=None)

    assert [page.status_code for page in (login, code, refused)] == [200, 200, 400]
    for page in (login, code, refused):
        policy = dict(each.split(" ", 1) for each in page.headers["Content-Security-Policy"].split("; "))
        assert policy.pop("style-src").startswith("'sha256-")
        # After a login the client's page may lead on to anywhere, and browsers hold that against the form.
        assert policy.pop("form-action") == ("'self' http: https:" if page is login else "'none'")
        assert policy == {"default-src": "'none'", "base-uri": "'none'", "frame-ancestors": "'none'"}
        assert "script" not in page.text and "http" not in re.sub("<input[^>]*>", "", page.text)
        assert page.headers["Cache-Control"] == "no-store"
        assert page.headers["Referrer-Policy"] == "no-referrer"


def test_the_form_is_sent_to_where_it_came_from_below_whatever_address(browser: Browser) -> None:
    assert 'action="authorize"' in browser.ask_to_log_in().text


@pytest.mark.parametrize("name", ["state", "prefill_named_grant"])
def test_what_a_link_brings_is_shown_as_text(browser: Browser, name: str) -> None:
    evil = "\"><script>alert('x')</script>"

    page = browser.log_in(evil, "", **{name: evil})

    assert "<script>" not in page.text and "&lt;script&gt;" in page.text


def test_the_code_page_shows_a_code_as_text(browser: Browser) -> None:
    code = browser.get("/auth/v2/web/auth-code", query_string={"code": '"><script>'})
    nothing = browser.get("/auth/v2/web/auth-code")

    assert "readonly" in code.text and "<script>" not in code.text
    assert "There is no code here" in nothing.text


@pytest.mark.parametrize(("error", "said"), [("access_denied", "cancelled"), ("Call 555-0100", "refused what")])
def test_the_code_page_gives_reasons_in_words_of_our_own_alone(browser: Browser, error: str, said: str) -> None:
    page = browser.get("/auth/v2/web/auth-code", query_string={"error": error, "error_description": "Call 555-0100"})

    assert said in problem_in(page)
    assert "555" not in page.text


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
    ("uri", "why"),
    [
        ("http://site.example.org/", "https://... is needed"),
        ("ftp://x/", "https://... is needed"),
        ("https://", "https://... is needed"),
        ("x", "https://... is needed"),
        ("https://a;b/", "the character ';'"),
        ("https://a b/", "the character ' '"),
        ("https://a/\n", r"the character '\\n'"),
        ("https://\u00fc.example.org/", "the character 'ü'"),
    ],
)
def test_a_page_that_cannot_be_led_to_is_not_registered_and_the_reason_is_said(
    service: Service, uri: str, why: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"cannot be a redirect URI: {why}"):
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
    ("name", "secret"), [("ada", "wrong horse"), ("eve", PASSWORD), ("bob", "a secret"), ("a\0da", PASSWORD)]
)
def test_others_are_not_let_in_and_not_told_which_of_the_two_is_wrong(
    browser: Browser, ada_by_password: Person, bob: Person, name: str, secret: str
) -> None:
    page = browser.log_in(name, secret)

    assert page.status_code == 403
    assert problem_in(page) == "That name and that password or token do not belong together."
    assert secret not in page.text


@pytest.mark.parametrize(("name", "secret"), [("ada", ""), ("", PASSWORD), (" ", PASSWORD)])
def test_a_name_and_a_secret_are_both_needed(browser: Browser, name: str, secret: str) -> None:
    page = browser.log_in(name, secret)

    assert (page.status_code, "Both fields" in problem_in(page)) == (400, True)


def test_what_was_typed_as_a_name_is_logged_only_if_it_is_one(
    browser: Browser, ada: Person, caplog: pytest.LogCaptureFixture
) -> None:
    browser.log_in(PASSWORD, "ada")
    browser.log_in("ada", "wrong horse")

    assert PASSWORD not in caplog.text and "wrong horse" not in caplog.text
    assert "a name that nobody has" in caplog.text and "'ada'" in caplog.text


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
    service: Service, browser: Browser, ada_by_password: Person, now: float
) -> None:
    for _ in range(FREE_ATTEMPTS):
        assert browser.log_in("ada", "wrong").status_code == 403

    blocked = browser.log_in("ada", PASSWORD)

    assert (blocked.status_code, blocked.headers["Retry-After"]) == (429, "2")
    assert problem_in(blocked) == "Too many failed attempts. Try again in 2 seconds."
    # A token cannot be guessed.
    assert browser.log_in("ada", ada_by_password.token).status_code == 303
    with service.database.writing() as connection:
        connection.execute(update(LoginFailure).values(blocked_until=now - 1))
    assert browser.log_in("ada", "wrong").status_code == 403
    assert browser.log_in("ada", PASSWORD).headers["Retry-After"] == "4"


def test_a_success_clears_the_count_and_so_do_a_day_and_a_new_password(
    service: Service, browser: Browser, ada_by_password: Person
) -> None:
    def failures() -> list[int]:
        """Of the address, and of the name from there."""
        with service.database.reading() as connection:
            query = select(LoginFailure.failures).order_by(func.length(LoginFailure.subject))
            return list(connection.execute(query).scalars())

    browser.log_in("ada", "wrong")
    browser.log_in("ada", "wrong")
    assert failures() == [2, 2]
    browser.log_in("ada", PASSWORD)
    # Otherwise one's own password would buy guesses at those of others.
    assert failures() == [2]

    browser.log_in("ada", "wrong")
    passwords.set_password(service.database, "ada", "another one")
    assert failures() == [3]

    browser.log_in("ada", "wrong")
    with service.database.writing() as connection:
        connection.execute(update(LoginFailure).values(failures=70, last_at=time.time() - 2 * 86_400))
    browser.log_in("ada", "wrong")
    assert failures() == [1, 1]
    with service.database.writing() as connection:
        connection.execute(update(LoginFailure).values(last_at=time.time() - 2 * 86_400))
    sweeping.sweep(service.database)
    assert failures() == []


def test_nobody_is_kept_out_by_guesses_from_elsewhere(service: Service, ada_by_password: Person) -> None:
    stranger = Browser(service.app, "2001:db8:0:1::1")
    for _ in range(FREE_ATTEMPTS):
        stranger.log_in("ada", "wrong")

    # One machine can have every address of its network.
    assert Browser(service.app, "2001:db8:0:1::2").log_in("ada", PASSWORD).status_code == 429
    assert Browser(service.app, "2001:db8:0:2::1").log_in("ada", PASSWORD).status_code == 303


def test_an_address_is_limited_whatever_the_names(
    service: Service, ada_by_password: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guessing, "OF_ADDRESS", guessing.Limit(3, 30.0, 3600.0))
    near = Browser(service.app, "192.0.2.1")
    assert [near.log_in(f"nobody {number}", "guess").status_code for number in range(3)] == [403] * 3

    assert near.log_in("ada", PASSWORD).status_code == 429
    assert near.log_in("ada", ada_by_password.token).status_code == 303
    assert Browser(service.app, "192.0.2.2").log_in("ada", PASSWORD).status_code == 303


@pytest.mark.parametrize(("proxies", "statuses"), [(0, [429, 429]), (1, [429, 303])])
def test_a_proxys_word_for_an_address_counts_only_if_the_settings_say_so(
    tmp_path: Path, database_url: str, make_service: type[Service], proxies: int, statuses: list[int]
) -> None:
    service = make_service(tmp_path, database_url, proxies=proxies)
    service.person("ada")
    passwords.set_password(service.database, "ada", PASSWORD)
    browser = Browser(service.app, "10.0.0.1")

    def log_in(password: str, address: str) -> int:
        form = {**login_request(), "name": "ada", "secret": password, "decision": "allow"}
        # What the client itself says of its address comes before what the proxy adds.
        headers = {"X-Forwarded-For": f"192.0.2.99, {address}"}
        return browser.post("/auth/v2/oauth2/authorize", form, headers=headers).status_code

    for _ in range(FREE_ATTEMPTS):
        log_in("wrong", "192.0.2.1")

    assert [log_in(PASSWORD, address) for address in ("192.0.2.1", "192.0.2.2")] == statuses
    service.database.close()


def test_whoever_cannot_be_checked_soon_is_asked_to_try_again_and_is_not_counted(
    service: Service, browser: Browser, ada_by_password: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "PATIENCE_S", 0.01)
    monkeypatch.setattr(passwords, "_few_at_once", threading.BoundedSemaphore(1))
    with passwords._turn():
        busy = browser.log_in("ada", PASSWORD)

    assert (busy.status_code, busy.headers["Retry-After"]) == (503, "2")
    assert "Try again" in problem_in(busy)
    with service.database.reading() as connection:
        assert connection.execute(select(func.count()).select_from(LoginFailure)).scalar_one() == 0
    monkeypatch.setattr(passwords, "_in_line", threading.BoundedSemaphore(1))
    with passwords._turn():
        assert browser.log_in("ada", PASSWORD).status_code == 503
    assert browser.log_in("ada", PASSWORD).status_code == 303


def test_what_fails_on_the_way_is_a_page_too(
    service: Service, browser: Browser, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = browser.log_in("ada", "x" * 30_000)
    with monkeypatch.context() as broken:
        broken.setattr(passwords, "log_in", unreachable)
        away = browser.log_in("ada", ada.token)

    assert (long.status_code, away.status_code) == (413, 503)
    assert "larger than" in problem_in(long) and "cannot use its database" in problem_in(away)
    assert away.headers["Retry-After"] == "2"


def test_many_attempts_at_once_are_no_more_than_as_many_in_turn(
    service: Service, ada_by_password: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "PATIENCE_S", 60.0)
    together = threading.Barrier(12)

    def guess(number: int) -> int:
        together.wait()
        return Browser(service.app).log_in("ada", f"guess {number}").status_code

    with ThreadPoolExecutor(12) as threads:
        statuses = sorted(threads.map(guess, range(12)))

    assert statuses == [403] * FREE_ATTEMPTS + [429] * (12 - FREE_ATTEMPTS)


def test_a_name_that_nobody_has_is_slowed_down_just_the_same(service: Service, browser: Browser) -> None:
    statuses = [browser.log_in("nobody", "guess").status_code for _ in range(FREE_ATTEMPTS + 1)]

    assert statuses == [403] * FREE_ATTEMPTS + [429]


def test_failures_are_swept_away_by_failures_and_a_sweep_that_fails_is_nobodys_business(
    service: Service, browser: Browser, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    def old_and_new() -> list[int]:
        with service.database.reading() as connection:
            counts = select(func.count(), func.count().filter(LoginFailure.last_at < 2.0)).select_from(LoginFailure)
            return list(connection.execute(counts).one())

    rows = [{"subject": str(number), "failures": 1, "last_at": 1.0, "blocked_until": 0.0} for number in range(250)]
    with service.database.writing() as connection:
        connection.execute(insert(LoginFailure), rows)

    monkeypatch.setattr(pages, "SWEEPER", sweeping.Sweeper())
    browser.log_in("nobody", "guess")

    assert old_and_new() == [2, 0]
    monkeypatch.setattr(pages, "SWEEPER", sweeping.Sweeper())
    monkeypatch.setattr(routes, "SWEEPER", sweeping.Sweeper())
    monkeypatch.setattr(sweeping, "sweep", unreachable)
    assert browser.log_in("nobody", "guess").status_code == 403
    assert "access_token" in done(browser.exchange(browser.code("ada", ada.token)))


def unreachable(*_: object) -> NoReturn:
    raise OperationalError("SELECT 1", {}, Exception("the server has gone"))


def test_the_wait_grows_to_a_quarter_of_an_hour_and_no_further() -> None:
    waits = [guessing.OF_NAME.wait_after(failures) for failures in (1, 4, 5, 6, 7, 13, 14, 1000)]

    assert waits == [0, 0, 2, 4, 8, 512, 900, 900]


@pytest.mark.parametrize("password", ["", "short", "x" * 1025])
def test_a_password_has_a_length(service: Service, ada: Person, password: str) -> None:
    with pytest.raises(ConfigurationError, match="a password has 8 to 1024 characters"):
        passwords.set_password(service.database, "ada", password)


def test_a_password_of_nobody_is_not_kept(service: Service) -> None:
    with pytest.raises(ConfigurationError, match="there is no user 'nobody'"):
        passwords.set_password(service.database, "nobody", PASSWORD)
