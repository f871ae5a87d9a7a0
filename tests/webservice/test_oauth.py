"""The token issuer: who gets which token, what it opens, and how it ends."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet
from logins import (
    CODE_PAGE,
    COMPUTE,
    NATIVE,
    SCOPES,
    Browser,
    bearer,
    code_in,
    done,
    login_request,
    problem_in,
    refused,
)
from sqlalchemy import func, select, update

from farcall_webservice import auth
from farcall_webservice.models import AuthorizationCode, OAuthClient, RefreshToken, SigningKey, Token
from farcall_webservice.oauth import clients, issuing, keys, sweeping

if TYPE_CHECKING:
    from conftest import Person, Service

CREDENTIALS = {"grant_type": "client_credentials", "scope": COMPUTE}


@pytest.fixture
def browser(service: Service) -> Browser:
    return Browser(service.app)


@pytest.fixture
def robot(service: Service) -> tuple[str, str]:
    """The id and the secret of a client that acts as the user robot."""
    return clients.create(service.database, "robot")


# -- a client on its own ----------------------------------------------------------------------------------------------


def test_a_client_gets_exactly_one_token_and_acts_as_its_user(browser: Browser, robot: tuple[str, str]) -> None:
    # globus_sdk repeats scopes.
    tokens = done(browser.token({**CREDENTIALS, "scope": f"{COMPUTE} {COMPUTE}"}, basic=robot))

    assert tokens.pop("access_token").startswith("fc_")
    assert tokens == {
        "token_type": "Bearer",
        "expires_in": 48 * 3600,
        "scope": COMPUTE,
        "resource_server": "funcx_service",
        "other_tokens": [],
    }


def test_the_token_of_a_client_opens_the_api_as_its_user(
    service: Service, browser: Browser, robot: tuple[str, str]
) -> None:
    client_id, secret = robot
    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}

    token = done(browser.token(form))["access_token"]

    assert done(browser.whoami(token))["name"] == "robot"
    assert done(browser.whoami(token))["id"] == auth.user_id_of(service.database, "robot")


def test_scopes_of_two_resource_servers_give_a_token_for_each(browser: Browser, robot: tuple[str, str]) -> None:
    tokens = done(browser.token({**CREDENTIALS, "scope": f"{COMPUTE} openid profile"}, basic=robot))

    assert (tokens["resource_server"], tokens["scope"]) == ("auth.globus.org", "openid profile")
    (other,) = tokens["other_tokens"]
    assert (other["resource_server"], other["scope"]) == ("funcx_service", COMPUTE)


def test_a_token_opens_only_what_its_scope_names(browser: Browser, robot: tuple[str, str]) -> None:
    tokens = done(browser.token({**CREDENTIALS, "scope": f"openid {COMPUTE}"}, basic=robot))
    identity, compute = tokens["access_token"], tokens["other_tokens"][0]["access_token"]

    assert browser.whoami(compute).status_code == browser.userinfo(identity).status_code == 200
    answer = browser.whoami(identity)
    assert (answer.status_code, answer.json["code"]) == (403, "INSUFFICIENT_AUTH_SCOPE")
    assert 'error="insufficient_scope"' in answer.headers["WWW-Authenticate"]
    assert COMPUTE in answer.json["message"]
    refused(browser.userinfo(compute), 403, "insufficient_scope")


@pytest.mark.parametrize("basic", [True, False])
@pytest.mark.parametrize("wrong", ["id", "secret", "neither given"])
def test_a_wrong_client_is_refused_in_oauths_form(
    browser: Browser, robot: tuple[str, str], basic: bool, wrong: str
) -> None:
    client_id, secret = robot if wrong != "neither given" else ("", "")
    client_id = NATIVE if wrong == "id" else client_id
    secret = secret + "x" if wrong == "secret" else secret
    form = CREDENTIALS if basic else {**CREDENTIALS, "client_id": client_id, "client_secret": secret}

    answer = browser.token(form, basic=(client_id, secret) if basic else None)

    assert "secret is missing or wrong" in refused(answer, 401 if basic else 400, "invalid_client")
    assert answer.headers["Cache-Control"] == "no-store"
    assert not basic or answer.headers["WWW-Authenticate"].startswith("Basic")


@pytest.mark.parametrize("header", ["Basic %%%", "Basic /////w==", "Basic ", "Basic dXNlcg=="])
def test_a_broken_authorization_header_is_a_wrong_client(browser: Browser, header: str) -> None:
    answer = browser.post("/auth/v2/oauth2/token", CREDENTIALS, headers={"Authorization": header})

    refused(answer, 401, "invalid_client")


def test_a_scope_that_does_not_exist_is_refused_with_those_that_do(browser: Browser, robot: tuple[str, str]) -> None:
    answer = browser.token({**CREDENTIALS, "scope": "urn:globus:auth:scope:transfer.api.globus.org:all"}, basic=robot)

    assert COMPUTE in refused(answer, 400, "invalid_scope")


@pytest.mark.parametrize("grant_type", ["password", "implicit", "", None])
def test_other_grants_are_refused(browser: Browser, robot: tuple[str, str], grant_type: str | None) -> None:
    form = {} if grant_type is None else {"grant_type": grant_type}

    refused(browser.token(form, basic=robot), 400, "unsupported_grant_type")


def test_parameters_in_the_address_or_twice_are_refused(browser: Browser, robot: tuple[str, str]) -> None:
    in_the_address = browser.post("/auth/v2/oauth2/token?grant_type=client_credentials", {}, auth=robot)
    twice = browser.post("/auth/v2/oauth2/token", {"grant_type": ["client_credentials"] * 2}, auth=robot)

    refused(in_the_address, 400, "invalid_request")
    refused(twice, 400, "invalid_request")


@pytest.mark.parametrize("value", ['"', "\\", "\n", "\0", "ü", "\ud7ff", "\U0001f600"])
@pytest.mark.parametrize("name", ["grant_type", "scope", "client_id", "redirect_uri"])
def test_characters_that_oauth_does_not_know_are_a_request_that_is_wrong(
    browser: Browser, robot: tuple[str, str], name: str, value: str
) -> None:
    refused(browser.token({**CREDENTIALS, name: value}, basic=robot), 400, "invalid_request")
    assert browser.ask_to_log_in(**{name: value}).status_code == 400


def test_the_name_of_the_host_does_not_matter_nor_that_it_is_plain_http(
    browser: Browser, robot: tuple[str, str]
) -> None:
    answer = browser.post(
        "/auth/v2/oauth2/token", CREDENTIALS, auth=robot, base_url="http://farcall.cluster.example:5000"
    )

    assert answer.status_code == 200


def test_a_revoked_client_and_all_its_tokens_are_refused(
    service: Service, browser: Browser, robot: tuple[str, str]
) -> None:
    token = done(browser.token(CREDENTIALS, basic=robot))["access_token"]

    clients.revoke(service.database, robot[0])
    clients.revoke(service.database, robot[0])

    refused(browser.token(CREDENTIALS, basic=robot), 401, "invalid_client")
    assert "revoked" in browser.whoami(token).json["message"]
    (row,) = clients.listed(service.database)
    assert (row.user_name, row.revoked_at is not None) == ("robot", True)


def test_only_hashes_are_kept(service: Service, browser: Browser, ada: Person, robot: tuple[str, str]) -> None:
    code = browser.code("ada", ada.token)
    tokens = done(browser.exchange(code))
    secrets = {robot[1], code, tokens["access_token"], tokens["refresh_token"]}

    with service.database.reading() as connection:
        everything = "".join(
            str(row)
            for table in (Token, RefreshToken, AuthorizationCode, OAuthClient)
            for row in connection.execute(select(table))
        )
    assert not [secret for secret in secrets if secret in everything]


def test_a_token_lives_as_long_as_the_settings_say(service: Service, browser: Browser, robot: tuple[str, str]) -> None:
    token = done(browser.token(CREDENTIALS, basic=robot))["access_token"]
    with service.database.writing() as connection:
        expires_at = connection.execute(select(Token.expires_at)).scalar_one()
        connection.execute(update(Token).values(expires_at=1.0))

    assert expires_at == pytest.approx(time.time() + service.config.access_token_s, abs=60)
    answer = browser.whoami(token)
    assert (answer.status_code, answer.json["code"]) == (401, "INVALID_AUTH_TOKEN")
    assert "expired" in refused(browser.userinfo(token), 401, "invalid_token")


# -- a person, by the code of the login page --------------------------------------------------------------------------


def test_a_code_gives_two_tokens_with_refresh_tokens_and_says_who_it_is(
    service: Service, browser: Browser, ada: Person
) -> None:
    tokens = done(browser.exchange(browser.code("ada", ada.token, nonce="n1")))

    (compute,) = tokens["other_tokens"]
    assert (tokens["resource_server"], compute["resource_server"]) == ("auth.globus.org", "funcx_service")
    assert tokens["refresh_token"] and compute["refresh_token"] != tokens["refresh_token"]
    assert done(browser.whoami(compute["access_token"]))["id"] == ada.id
    configuration = done(browser.get("/auth/.well-known/openid-configuration"))
    published = done(browser.get(configuration["jwks_uri"]))
    read = jwt.decode(tokens["id_token"], KeySet.import_key_set(published), algorithms=["RS512"])
    assert read.header["alg"] == "RS512"
    assert read.claims["sub"] == ada.id
    assert read.claims["aud"] == NATIVE
    assert read.claims["nonce"] == "n1"
    assert read.claims["iss"] == configuration["issuer"] == "http://localhost/auth"
    assert read.claims["iat"] <= time.time() < read.claims["exp"]


def test_without_offline_access_there_is_nothing_to_refresh_with_and_without_openid_no_id_token(
    browser: Browser, ada: Person
) -> None:
    tokens = done(browser.exchange(browser.code("ada", ada.token, access_type=None, scope=COMPUTE)))

    assert "refresh_token" not in tokens and "id_token" not in tokens
    assert tokens["other_tokens"] == []


def test_a_second_use_of_a_code_is_refused_and_ends_what_the_first_one_gave(browser: Browser, ada: Person) -> None:
    code = browser.code("ada", ada.token)
    tokens = done(browser.exchange(code))

    refused(browser.exchange(code), 400, "invalid_grant")

    refused(browser.userinfo(tokens["access_token"]), 401, "invalid_token")
    refused(browser.refresh(tokens["refresh_token"]), 400, "invalid_grant")
    assert browser.whoami(ada.token).status_code == 200


def test_of_many_who_use_a_code_at_once_at_most_one_gets_tokens(service: Service, ada: Person) -> None:
    code = Browser(service.app).code("ada", ada.token)
    together = threading.Barrier(4)

    def use(_: int) -> int:
        together.wait()
        return Browser(service.app).exchange(code).status_code

    with ThreadPoolExecutor(4) as threads:
        statuses = sorted(threads.map(use, range(4)))

    assert statuses == [200, 400, 400, 400]
    with service.database.reading() as connection:
        live = select(func.count()).where(Token.client_id.is_not(None), Token.revoked_at.is_(None))
        assert connection.execute(live).scalar_one() == 0


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"code_verifier": "w" * 64}, "invalid_grant"),
        ({"code_verifier": "short"}, "invalid_request"),
        ({"code_verifier": None}, "invalid_request"),
        ({"redirect_uri": "http://localhost:1/"}, "invalid_grant"),
        ({"redirect_uri": None}, "invalid_grant"),
        ({"code": "nonsense"}, "invalid_grant"),
        ({"code": None}, "invalid_request"),
        ({"client_id": None}, "invalid_client"),
    ],
)
def test_a_code_is_good_only_with_all_that_belongs_to_it(
    browser: Browser, ada: Person, changes: dict[str, str | None], error: str
) -> None:
    code = browser.code("ada", ada.token)

    answer = browser.exchange(**{"code": code, **changes})

    refused(answer, 400, error)
    # A mistake does not use it up: whoever guesses would have to guess the verifier too.
    assert browser.exchange(code).status_code == 200


def test_a_code_of_one_client_is_nothing_to_another(service: Service, browser: Browser, ada: Person) -> None:
    client_id, secret = clients.create(service.database, "site", redirect_uris=["https://site.example.org/back"])
    code = browser.code("ada", ada.token)

    answer = browser.exchange(code, client_id=client_id, client_secret=secret)

    refused(answer, 400, "invalid_grant")
    assert browser.exchange(code).status_code == 200


def test_a_code_is_good_for_ten_minutes(service: Service, browser: Browser, ada: Person) -> None:
    code = browser.code("ada", ada.token)
    with service.database.writing() as connection:
        row = connection.execute(select(AuthorizationCode)).one()
        connection.execute(update(AuthorizationCode).values(expires_at=time.time() - 1))

    refused(browser.exchange(code), 400, "invalid_grant")

    assert row.expires_at - row.created_at == 600


def test_the_redirect_uri_is_named_at_a_login_even_if_the_client_has_just_one(service: Service) -> None:
    page = "https://site.example.org/back"
    site, _ = clients.create(service.database, "site", redirect_uris=[page])

    answer = Browser(service.app).ask_to_log_in(client_id=site, redirect_uri=None)

    assert (answer.status_code, answer.location) == (400, None)
    assert "redirect_uri" in problem_in(answer)


def test_a_code_whose_exchange_failed_for_want_of_a_key_can_be_exchanged_again(
    service: Service, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = Browser(service.app)
    code = browser.code("ada", ada.token)
    with monkeypatch.context() as broken:
        broken.setattr(keys, "_kept", lambda _: "not a key")
        assert browser.exchange(code).status_code == 500

    assert "id_token" in done(browser.exchange(code))


def test_a_client_with_a_page_of_its_own_logs_people_in(service: Service, browser: Browser, ada: Person) -> None:
    page = "https://site.example.org/back?a=1"
    site = clients.create(service.database, "site", name="The site", redirect_uris=[page])
    request = {"client_id": site[0], "redirect_uri": page, "code_challenge": None, "code_challenge_method": None}

    assert "The site" in browser.ask_to_log_in(**request).text
    answer = browser.log_in("ada", ada.token, **request)

    assert answer.location.startswith(f"{page}&code=")
    form = {"grant_type": "authorization_code", "code": code_in(answer), "redirect_uri": page}
    tokens = done(browser.token(form, basic=site))
    assert done(browser.userinfo(tokens["access_token"]))["sub"] == ada.id


# -- going on, and ending ---------------------------------------------------------------------------------------------


def test_a_refresh_token_gives_one_new_token_each_time_and_stays(browser: Browser, ada: Person) -> None:
    first = done(browser.exchange(browser.code("ada", ada.token)))["other_tokens"][0]

    second = done(browser.refresh(first["refresh_token"]))
    third = done(browser.refresh(first["refresh_token"], scope=COMPUTE))

    assert len({tokens["access_token"] for tokens in (first, second, third)}) == 3
    assert second["other_tokens"] == third["other_tokens"] == []
    assert second["resource_server"] == "funcx_service"
    assert second["refresh_token"] == third["refresh_token"] == first["refresh_token"]
    for tokens in (first, second, third):
        assert browser.whoami(tokens["access_token"]).status_code == 200


def test_a_refresh_token_gives_no_more_than_it_was_given_for(browser: Browser, ada: Person) -> None:
    tokens = done(browser.exchange(browser.code("ada", ada.token)))

    answer = browser.refresh(tokens["refresh_token"], scope=COMPUTE)

    refused(answer, 400, "invalid_scope")
    assert done(browser.refresh(tokens["refresh_token"], scope="openid openid"))["scope"] == "openid"


def test_a_refresh_token_that_is_not_used_for_half_a_year_dies(service: Service, browser: Browser, ada: Person) -> None:
    tokens = done(browser.exchange(browser.code("ada", ada.token)))
    with service.database.writing() as connection:
        connection.execute(update(RefreshToken).values(expires_at=time.time() + 5))
    done(browser.refresh(tokens["refresh_token"]))
    with service.database.reading() as connection:
        moved = connection.execute(select(func.max(RefreshToken.expires_at))).scalar_one()
    with service.database.writing() as connection:
        connection.execute(update(RefreshToken).values(expires_at=time.time() - 1))

    assert moved == pytest.approx(time.time() + 180 * 86_400, abs=60)
    assert "log in again" in refused(browser.refresh(tokens["refresh_token"]), 400, "invalid_grant")


@pytest.mark.parametrize("changes", [{"refresh_token": "fcr_nonsense"}, {"refresh_token": ""}, {"client_id": ""}])
def test_a_refresh_token_that_is_none_is_refused(browser: Browser, changes: dict[str, str]) -> None:
    assert browser.refresh(**{"refresh_token": "fcr_x", **changes}).status_code == 400


def revoke(browser: Browser, token: str, **more: str) -> int:
    return browser.post("/auth/v2/oauth2/token/revoke", {"token": token, **more}).status_code


def test_whoever_has_a_token_may_end_it_and_a_refresh_token_takes_its_access_tokens_along(
    browser: Browser, ada: Person
) -> None:
    tokens = done(browser.exchange(browser.code("ada", ada.token)))
    (compute,) = tokens["other_tokens"]

    assert revoke(browser, tokens["access_token"], client_id=NATIVE) == 200
    assert revoke(browser, compute["refresh_token"]) == 200

    assert browser.userinfo(tokens["access_token"]).status_code == 401
    assert browser.whoami(compute["access_token"]).status_code == 401
    refused(browser.refresh(compute["refresh_token"]), 400, "invalid_grant")
    # The other resource server's refresh token is another one.
    done(browser.refresh(tokens["refresh_token"]))


def test_ending_a_token_is_answered_as_globus_does_and_an_unknown_one_is_no_error(
    browser: Browser, ada: Person
) -> None:
    answer = browser.post("/auth/v2/oauth2/token/revoke", {"token": ada.token, "client_id": NATIVE})

    assert done(answer) == {"active": False}
    assert ada.get("/v2/whoami").status == 401
    assert revoke(browser, "nonsense") == 200
    refused(browser.post("/auth/v2/oauth2/token/revoke", {}), 400, "invalid_request")


def test_a_client_ends_no_token_of_another(browser: Browser, ada: Person, robot: tuple[str, str]) -> None:
    tokens = done(browser.exchange(browser.code("ada", ada.token)))

    for token in (tokens["access_token"], tokens["refresh_token"]):
        answer = browser.post("/auth/v2/oauth2/token/revoke", {"token": token}, auth=robot)
        refused(answer, 400, "invalid_grant")

    refused(browser.post("/auth/v2/oauth2/token/revoke", {"token": "x"}, auth=("a", "b")), 401, "invalid_client")
    assert browser.userinfo(tokens["access_token"]).status_code == 200


def test_logging_a_user_out_ends_all_logins_but_not_the_tokens_of_token_create(
    service: Service, browser: Browser, ada: Person, bob: Person
) -> None:
    tokens = done(browser.exchange(browser.code("ada", ada.token)))
    bobs = done(browser.exchange(browser.code("bob", bob.token)))
    unused = browser.code("ada", ada.token)

    issuing.end_logins(service.database, "ada")

    assert browser.userinfo(tokens["access_token"]).status_code == 401
    refused(browser.refresh(tokens["refresh_token"]), 400, "invalid_grant")
    refused(browser.exchange(unused), 400, "invalid_grant")
    assert ada.get("/v2/whoami").status == 200
    assert browser.userinfo(bobs["access_token"]).status_code == 200


def test_a_token_ends_with_the_logins_that_it_was_used_for(service: Service, browser: Browser, ada: Person) -> None:
    code, unused = browser.code("ada", ada.token), browser.code("ada", ada.token)
    first = done(browser.exchange(code))
    renewed = done(browser.refresh(first["refresh_token"]))

    revoke(browser, ada.token)

    for token in (first["access_token"], renewed["access_token"]):
        refused(browser.userinfo(token), 401, "invalid_token")
    assert browser.whoami(first["other_tokens"][0]["access_token"]).status_code == 401
    refused(browser.refresh(first["refresh_token"]), 400, "invalid_grant")
    refused(browser.exchange(unused), 400, "invalid_grant")


def test_a_login_by_a_token_that_expires_ends_with_it(service: Service, browser: Browser, ada: Person) -> None:
    _, short = auth.create_token(service.database, "ada", expires_days=1, label="short")

    tokens = done(browser.exchange(browser.code("ada", short)))
    renewed = done(browser.refresh(tokens["refresh_token"]))

    for lifetime_s in (tokens["expires_in"], renewed["expires_in"]):
        assert lifetime_s == pytest.approx(86_400, abs=60)
    with service.database.writing() as connection:
        parent = connection.execute(select(Token.expires_at).where(Token.label == "short")).scalar_one()
        ends = connection.execute(select(RefreshToken.expires_at)).scalars().all()
        connection.execute(update(Token).where(Token.label == "short").values(expires_at=time.time() - 1))
    assert set(ends) == {parent}
    refused(browser.refresh(tokens["refresh_token"]), 400, "invalid_grant")


@pytest.mark.parametrize("end", ["log out", "revoke the token", "end the refresh token"])
def test_what_ended_after_it_was_looked_at_gives_nothing_more(
    service: Service, browser: Browser, ada: Person, end: str
) -> None:
    secret = done(browser.exchange(browser.code("ada", ada.token)))["refresh_token"]
    unused = browser.code("ada", ada.token)
    token = issuing.find_refresh_token(service.database, secret)
    code = issuing.find_code(service.database, unused, clients.GLOBUS_COMPUTE)
    assert token is not None and code is not None

    if end == "log out":
        issuing.end_logins(service.database, "ada")
    else:
        revoke(browser, ada.token if end == "revoke the token" else secret)

    renewed = issuing.renew(service.database, clients.GLOBUS_COMPUTE, token, secret, "", 60)
    exchanged = issuing.exchange_code(service.database, clients.GLOBUS_COMPUTE, code, 60)
    assert renewed is None
    assert (exchanged is None) == (end != "end the refresh token")


def test_a_client_that_was_revoked_after_it_had_proved_itself_gets_no_token(
    service: Service, robot: tuple[str, str]
) -> None:
    client = clients.find(service.database, robot[0])
    assert client is not None

    clients.revoke(service.database, client.id)

    assert issuing.tokens_of_client(service.database, client, COMPUTE, 60) is None


def test_no_token_survives_a_logout_that_comes_while_it_is_made(
    service: Service, browser: Browser, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = done(browser.exchange(browser.code("ada", ada.token)))["refresh_token"]
    under_way, logged_out, issue = threading.Event(), threading.Event(), issuing._issued

    def slowly(*arguments: Any, **more: Any) -> dict[str, Any]:
        under_way.set()
        # The logout gets as far as it can, which should not be to its end.
        assert not logged_out.wait(0.3)
        return issue(*arguments, **more)

    def log_out() -> None:
        assert under_way.wait(30)
        issuing.end_logins(service.database, "ada")
        logged_out.set()

    monkeypatch.setattr(issuing, "_issued", slowly)
    with ThreadPoolExecutor(2) as threads:
        renewal, logout = threads.submit(Browser(service.app).refresh, secret), threads.submit(log_out)
        renewed, _ = renewal.result(), logout.result()

    assert renewed.status_code == 200
    assert browser.userinfo(done(renewed)["access_token"]).status_code == 401


# -- asking about tokens and people -----------------------------------------------------------------------------------


def introspect(browser: Browser, token: str, robot: tuple[str, str]) -> dict[str, object]:
    body: dict[str, object] = done(browser.post("/auth/v2/oauth2/token/introspect", {"token": token}, auth=robot))
    return body


def test_a_registered_client_learns_what_a_token_is_good_for(
    browser: Browser, ada: Person, robot: tuple[str, str]
) -> None:
    tokens = done(browser.exchange(browser.code("ada", ada.token)))

    known = introspect(browser, tokens["other_tokens"][0]["access_token"], robot)

    assert known["active"] is True
    assert (known["sub"], known["username"], known["client_id"]) == (ada.id, "ada", NATIVE)
    assert (known["scope"], known["aud"], known["iss"]) == (COMPUTE, ["funcx_service"], "http://localhost/auth")
    static = introspect(browser, ada.token, robot)
    assert COMPUTE in str(static["scope"]) and "openid" in str(static["scope"])
    assert "exp" not in static


def test_a_token_that_is_no_good_is_not_active_and_nothing_more_is_said(
    browser: Browser, ada: Person, robot: tuple[str, str]
) -> None:
    tokens = done(browser.exchange(browser.code("ada", ada.token)))
    revoke(browser, tokens["access_token"])

    for token in (tokens["access_token"], tokens["refresh_token"], "nonsense"):
        assert introspect(browser, token, robot) == {"active": False}


def test_only_clients_with_a_secret_may_ask_about_tokens(browser: Browser, ada: Person) -> None:
    form = {"token": ada.token, "client_id": NATIVE}

    refused(browser.post("/auth/v2/oauth2/token/introspect", form), 400, "invalid_client")


def test_userinfo_knows_the_person_behind_every_kind_of_token(browser: Browser, ada: Person) -> None:
    body = done(browser.userinfo(ada.token))

    assert (body["sub"], body["preferred_username"], body["name"]) == (ada.id, "ada", "ada")
    assert [identity["sub"] for identity in body["identity_set"]] == [ada.id]
    refused(browser.get("/auth/v2/oauth2/userinfo"), 401, "invalid_token")


def test_people_are_found_by_id_and_by_name(browser: Browser, ada: Person, bob: Person, unknown_id: str) -> None:
    def find(query: str) -> list[tuple[str, str]]:
        body = done(browser.get(f"/auth/v2/api/identities?{query}", headers=bearer(ada.token)))
        return [(each["id"], each["username"]) for each in body["identities"]]

    assert find(f"ids={bob.id.upper()},{unknown_id},nonsense") == [(bob.id, "bob")]
    assert find("usernames=bob,ada,nobody,%00") == [(ada.id, "ada"), (bob.id, "bob")]
    assert find("ids=nonsense") == []


@pytest.mark.parametrize("query", ["", "ids=", "ids=a&usernames=b", "ids=" + ",".join("x" * 101)])
def test_a_wrong_question_about_people_is_told_so(browser: Browser, ada: Person, query: str) -> None:
    refused(browser.get(f"/auth/v2/api/identities?{query}", headers=bearer(ada.token)), 400, "invalid_request")


def test_the_signing_key_is_made_once_and_its_private_half_stays(service: Service, browser: Browser) -> None:
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda _: keys.public_keys(service.database), range(3)))

    (published,) = done(browser.get("/auth/jwk.json"))["keys"]
    assert all(answer["keys"] == [published] for answer in answers)
    assert set(published) == {"kty", "n", "e", "kid", "use", "alg"}
    with service.database.reading() as connection:
        assert connection.execute(select(func.count()).select_from(SigningKey)).scalar_one() == 1


def test_addresses_are_those_of_the_request(browser: Browser) -> None:
    answer = browser.get("/auth/.well-known/openid-configuration", base_url="https://farcall.example.org")

    assert answer.json["issuer"] == "https://farcall.example.org/auth"
    assert answer.json["token_endpoint"] == "https://farcall.example.org/auth/v2/oauth2/token"


# -- sweeping ---------------------------------------------------------------------------------------------------------


def test_what_is_long_over_is_swept_away_a_few_at_a_time(
    service: Service, browser: Browser, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "AT_ONCE", 2)
    monkeypatch.setattr(sweeping, "ROUNDS", 1)
    done(browser.exchange(browser.code("ada", ada.token)))
    done(browser.exchange(browser.code("ada", ada.token)))
    with service.database.writing() as connection:
        for table in (Token, RefreshToken, AuthorizationCode):
            connection.execute(update(table).values(expires_at=time.time() - 2 * 86_400))

    def rows() -> list[int]:
        with service.database.reading() as connection:
            tables = (Token, RefreshToken, AuthorizationCode)
            return [connection.execute(select(func.count()).select_from(table)).scalar_one() for table in tables]

    assert rows() == [5, 4, 2]
    sweeping.sweep(service.database)
    assert rows() == [3, 2, 0]
    sweeping.sweep(service.database)
    sweeping.sweep(service.database)
    # Ada's token of `token create` has expired too, and is still listed.
    assert rows() == [1, 0, 0]
    assert [row.name for row in auth.tokens(service.database)] == ["ada"]


def test_what_has_just_expired_is_kept_for_a_day(service: Service, browser: Browser, robot: tuple[str, str]) -> None:
    done(browser.token(CREDENTIALS, basic=robot))
    with service.database.writing() as connection:
        connection.execute(update(Token).values(expires_at=time.time() - 3600))

    sweeping.sweep(service.database)

    with service.database.reading() as connection:
        assert connection.execute(select(func.count()).select_from(Token)).scalar_one() == 1


def test_the_login_request_is_the_one_that_globus_sends() -> None:
    assert login_request()["scope"] == SCOPES
    assert login_request()["redirect_uri"] == CODE_PAGE
