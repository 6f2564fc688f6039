"""Who is let in, until when, and what the time and the answer tell those who are not."""

from __future__ import annotations

import ast
import hashlib
import inspect
from pathlib import Path

import pytest

from apportion.serve import errors, keyring
from apportion.serve.config.schema import Auth, Config, Key, Secret, Team
from apportion.serve.keyring import LOCAL, OPEN, Credential, Keyring, Snapshot, digest, merged, new_secret

PEPPER = b"pepper of the tests"
ID = "0123456789ab"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def made(
    key: Key, *secrets: tuple[str, float], config: Config | None = None, clock: Clock | None = None
) -> Keyring:
    """A keyring with one key of the database, which any of the secrets proves until its time."""
    credentials = tuple(Credential(ID, key.name, digest(PEPPER, s), until) for s, until in secrets)
    people = Snapshot(1, (key,), {}, (), credentials)
    return Keyring(merged(config or Config(), people), credentials, PEPPER, clock=clock or Clock())


def bearer(secret: str) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + secret.encode()}


def refused(ring: Keyring, headers: dict[bytes, bytes]) -> str:
    with pytest.raises(errors.AuthenticationError) as caught:
        ring.authenticate(headers)
    return str(caught.value)


FOREVER = float("inf")


class TestFinding:
    def test_a_key_of_the_database(self) -> None:
        secret = new_secret(ID)
        ring = made(Key(name="alice"), (secret, FOREVER))
        for headers in (
            bearer(secret),
            {b"x-api-key": secret.encode()},
            {b"authorization": f"bearer {secret}".encode()},
        ):
            assert ring.authenticate(headers).name == "alice"
            assert ring.authenticate(headers).name == "alice", "from the cache"

    def test_keys_of_the_configuration(self) -> None:
        plain = Key(name="plain", secret=Secret("sk-plain"))
        hashed = Key(name="hashed", secret_sha256=hashlib.sha256(b"sk-hashed").hexdigest().upper())
        ring = Keyring(Config(keys=[plain, hashed]))
        assert ring.authenticate(bearer("sk-plain")) is plain
        assert ring.authenticate({b"x-api-key": b"sk-hashed"}) is hashed

    def test_a_made_key_may_be_copied_into_the_configuration(self) -> None:
        secret = new_secret(ID)
        ring = made(
            Key(name="alice"), (secret, FOREVER), config=Config(keys=[Key(name="bob", secret=Secret(secret))])
        )
        assert ring.authenticate(bearer(secret)).name == "alice"
        ring = Keyring(Config(keys=[Key(name="bob", secret=Secret(secret))]))
        assert ring.authenticate(bearer(secret)).name == "bob"

    def test_the_configuration_stands_above_the_database(self) -> None:
        secret = new_secret(ID)
        config = Config(keys=[Key(name="alice", secret=Secret("sk-file"))])
        ring = made(Key(name="alice", admin=True), (secret, FOREVER), config=config)
        assert refused(ring, bearer(secret)) == refused(ring, bearer("sk-other"))
        assert not ring.authenticate(bearer("sk-file")).admin

    def test_this_users_own_key(self) -> None:
        ring = Keyring(Config(), local_sha256=hashlib.sha256(b"ephemeral").digest())
        assert ring.authenticate(bearer("ephemeral")) is LOCAL
        refused(ring, bearer("another"))


class TestRefusing:
    def test_all_that_is_not_proven_is_answered_alike(self) -> None:
        secret = new_secret(ID)
        ring = made(Key(name="alice"), (secret, FOREVER))
        said = {
            refused(ring, bearer(wrong))
            for wrong in (
                new_secret(ID),
                new_secret("ffffffffffff"),
                secret[:-1],
                secret + "x",
                secret.upper(),
                f"sk-ap-{ID}-",
                "sk-nothing",
                "\u00e9".encode().decode("latin-1"),
                "' OR '1'='1",
            )
        }
        assert len(said) == 1

    def test_what_is_stored_is_no_key(self) -> None:
        """Pass the hash (GHSA-69x8-hrgq-fjj8)."""
        secret = new_secret(ID)
        stored = digest(PEPPER, secret)
        ring = made(
            Key(name="alice"),
            (secret, FOREVER),
            config=Config(keys=[Key(name="bob", secret=Secret("sk-bob"))]),
        )
        sha256 = hashlib.sha256(b"sk-bob").hexdigest()
        for given in (stored.hex(), f"sk-ap-{ID}-{stored.hex()}", f"sk-ap-{ID}-{stored.hex()[:43]}", sha256):
            refused(ring, bearer(given))
        refused(ring, {b"authorization": b"Bearer " + stored})

    def test_another_pepper_makes_no_key_valid(self) -> None:
        secret = new_secret(ID)
        credentials = (Credential(ID, "alice", digest(b"another", secret)),)
        people = Snapshot(1, (Key(name="alice"),), {}, (), credentials)
        refused(Keyring(merged(Config(), people), credentials, PEPPER), bearer(secret))

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {b"authorization": b""},
            {b"x-api-key": b""},
            {b"authorization": b"Bearer "},
            {b"authorization": b"Bearer"},
            {b"authorization": b"Basic sk-plain"},
            {b"authorization": b"sk-plain"},
            {b"x-api-key": b"Bearer sk-plain"},
        ],
    )
    def test_no_key_or_not_as_it_is_sent(self, headers: dict[bytes, bytes]) -> None:
        ring = Keyring(Config(keys=[Key(name="plain", secret=Secret("sk-plain"))]))
        assert ring.authenticate(bearer("sk-plain")).name == "plain"
        refused(ring, headers)

    def test_disabled_and_teamless(self) -> None:
        secret = new_secret(ID)
        assert "disabled" in refused(made(Key(name="a", disabled=True), (secret, FOREVER)), bearer(secret))
        lost = Key(name="a", team="gone")
        assert "team" in refused(made(lost, (secret, FOREVER)), bearer(secret))
        config = Config(teams={"gone": Team()})
        assert made(lost, (secret, FOREVER), config=config).authenticate(bearer(secret)).team == "gone"
        # Who cannot prove the key is not told that it exists.
        other = made(Key(name="a", disabled=True), (secret, FOREVER))
        assert "disabled" not in refused(other, bearer(new_secret(ID)))


class TestTime:
    def test_expiry_is_looked_at_on_every_request(self) -> None:
        clock, secret = Clock(), new_secret(ID)
        ring = made(Key(name="a", expires=clock.now + 10), (secret, FOREVER), clock=clock)
        assert ring.authenticate(bearer(secret)).name == "a"
        clock.now += 9.999
        assert ring.authenticate(bearer(secret)).name == "a"
        clock.now += 0.001
        assert "expired" in refused(ring, bearer(secret))
        clock.now += 1e6
        assert "expired" in refused(ring, bearer(secret))

    def test_the_secret_before_a_rotation_ends_with_its_grace(self) -> None:
        clock, old, new = Clock(), new_secret(ID), new_secret(ID)
        ring = made(Key(name="a"), (new, FOREVER), (old, clock.now + 60), clock=clock)
        assert ring.authenticate(bearer(old)) == ring.authenticate(bearer(new))
        clock.now += 60
        refused(ring, bearer(old))
        assert ring.authenticate(bearer(new)).name == "a"


class TestCache:
    def test_it_is_keyed_by_the_whole_header(self) -> None:
        """Not by a part of it (CVE-2026-35030)."""
        secret = new_secret(ID)
        ring = made(Key(name="alice"), (secret, FOREVER))
        ring.authenticate(bearer(secret))
        for length in (20, 30, len(secret) - 1):
            refused(ring, bearer(secret[:length]))
            refused(ring, bearer(secret[:length] + "x" * (len(secret) - length)))

    def test_a_header_that_proved_right_proves_nothing_as_another(self) -> None:
        ring = Keyring(Config(keys=[Key(name="plain", secret=Secret("sk-plain"))]))
        ring.authenticate(bearer("sk-plain"))
        refused(ring, {b"x-api-key": b"Bearer sk-plain"})
        ring.authenticate({b"x-api-key": b"sk-plain"})
        refused(ring, {b"authorization": b"sk-plain"})

    def test_it_is_bounded_and_forgets_what_was_used_least_recently(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(keyring, "_SEEN", 3)
        keys = [Key(name=f"k{i}", secret=Secret(f"sk-{i}")) for i in range(5)]
        ring = Keyring(Config(keys=keys))
        for i in (0, 1, 2, 0, 3, 4):
            assert ring.authenticate(bearer(f"sk-{i}")) is keys[i]
        assert [header[-1:] for header in ring._seen] == [b"0", b"3", b"4"]

    def test_wrong_keys_leave_nothing(self) -> None:
        ring = Keyring(Config(keys=[Key(name="plain", secret=Secret("sk-plain"))]))
        for i in range(100):
            refused(ring, bearer(f"sk-wrong-{i}"))
        assert not ring._seen


class TestOpen:
    """Where no key is asked for."""

    RING = Keyring(Config(auth=Auth(required=False), keys=[Key(name="plain", secret=Secret("sk-plain"))]))

    def test_everybody_is_let_in_and_known_keys_are_known(self) -> None:
        assert self.RING.authenticate({}) is OPEN
        assert self.RING.authenticate(bearer("any")) is OPEN
        assert self.RING.authenticate(bearer("sk-plain")).name == "plain"

    @pytest.mark.parametrize(
        "headers",
        [
            {b"origin": b"https://evil.example"},
            {b"origin": b"null"},
            {b"sec-fetch-site": b"cross-site"},
            {b"sec-fetch-site": b"same-site"},
            # DNS rebinding: the browser takes evil.example for where its page came from
            {b"sec-fetch-site": b"same-origin", b"host": b"evil.example:8080"},
            {b"sec-fetch-site": b"same-origin", b"host": b"127.0.0.1.evil.example"},
            {b"origin": b"http://localhost.evil.example"},
            {b"origin": b"http://[::1"},
        ],
    )
    def test_pages_of_other_sites_are_not(self, headers: dict[bytes, bytes]) -> None:
        with pytest.raises(errors.PermissionDeniedError):
            self.RING.authenticate(headers)

    @pytest.mark.parametrize(
        "headers",
        [
            {b"origin": b"http://localhost:3000"},
            {b"origin": b"http://127.0.0.1"},
            {b"origin": b"http://[::1]:8080"},
            {b"sec-fetch-site": b"same-origin", b"host": b"127.0.0.1:8080"},
            {b"sec-fetch-site": b"none", b"host": b"localhost"},
            {b"host": b"anything"},
        ],
    )
    def test_pages_of_this_machine_and_programs_are(self, headers: dict[bytes, bytes]) -> None:
        assert self.RING.authenticate(headers) is OPEN


def test_digests_are_compared_in_constant_time() -> None:
    """No digest or secret is compared with ``==`` or ``in``; `hmac.compare_digest` is what decides."""
    tree = ast.parse(Path(inspect.getfile(keyring)).read_text(encoding="utf-8"))
    (verify,) = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "_verify")
    called = {ast.unparse(n.func) for n in ast.walk(verify) if isinstance(n, ast.Call)}
    assert "hmac.compare_digest" in called
    for node in ast.walk(verify):
        if isinstance(node, ast.Compare) and any(
            isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for op in node.ops
        ):
            pytest.fail(ast.unparse(node))


def test_new_secrets_are_long_random_and_of_one_shape() -> None:
    found = {new_secret(ID) for _ in range(100)}
    assert len(found) == 100
    assert all(keyring._MADE.fullmatch(secret.encode()) for secret in found)
    assert all(len(secret) == len("sk-ap-") + 12 + 1 + 43 for secret in found), "256 bits"
