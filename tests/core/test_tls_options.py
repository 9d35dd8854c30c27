"""The options of TLS: no error, representation or log shows a value that may be a secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from secure import contexts, files
from support import Cli

import netkit
from netkit.cli import main
from netkit.client.options import ConnectOptions
from netkit.core.options import Options
from netkit.core.tls_options import LONGEST_PASSWORD, parse_password
from netkit.process.work import Recipe
from netkit.tls.context import TlsFiles

SECRET = "hunter2-hunter2"
PEM = f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "tls_client_ca"])
@pytest.mark.parametrize("text", [PEM, PEM.replace("\n", "\r"), PEM.replace("\n", "\\n")])
def test_the_error_of_pem_as_text_asks_for_bytes(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is PEM as text: pass bytes") as caught:
        Options(**{"tls_cert": "x", name: text})
    assert SECRET not in str(caught.value)


WRONG: list[dict[str, Any]] = [
    {"tls": PEM},
    {"tls_cert": [PEM]},
    {"tls_key": {PEM}},
    {"tls_key_password": SECRET.encode()},
    {"tls_key_password": [SECRET]},
    {"tls_client_ca": (PEM,)},
    {"tls_sni": PEM},
    {"tls_sni": {"a": PEM}},
    {"tls_sni": {"a": (PEM, None)}},
    {"tls_sni": {"a": ("x", PEM)}},
    {"tls_sni": {"a": ("x", [PEM])}},
    {"tls_sni": {PEM: ("x",)}},
    {"tls_sni": {PEM: ("x", None)}},
    {"tls_alpn": PEM},
    {"tls_alpn": [PEM * 10]},
]


@pytest.mark.parametrize("options", WRONG)
def test_an_invalid_option_of_tls_is_not_shown(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        Options(**{"tls_cert": "x", **options})
    assert SECRET not in str(caught.value)
    assert next(iter(options)) in str(caught.value)
    if "tls_sni" not in options and "tls_client_ca" not in options:
        with pytest.raises((TypeError, ValueError)) as caught:
            ConnectOptions(**{"tls": True, "tls_cert": "x", **options})
        assert SECRET not in str(caught.value)


def test_a_representation_shows_none_of_them() -> None:
    given: dict[str, Any] = {"tls_cert": b"secret", "tls_key": b"secret"}
    given["tls_key_password"] = "secret"
    client = ConnectOptions(tls=True, retry=7, **given)
    server = Options(max_line=7, tls_sni={"a": (b"secret", b"secret")}, **given)
    made = TlsFiles(b"secret", b"secret", "secret")
    recipe = Recipe(netkit.Server, None, {"tls_key_password": "secret"}, ())
    for thing in (client, server, made, recipe, (client, server)):
        assert "secret" not in repr(thing) + str(thing) + f"{thing}"
    assert "retry=7" in repr(client)
    assert "tls_key=..." in repr(client)
    assert "max_line=7" in repr(server)
    assert "tls_client_ca=None" in repr(server)


@pytest.mark.parametrize(
    "options",
    [
        {"tls_ca": "x"},
        {"tls_cert": "x"},
        {"tls_alpn": ("a",)},
        {"tls_verify": False},
        {"tls_key_password": "x"},
    ],
)
def test_an_option_without_effect_on_a_context_of_the_program_is_refused(options: Any) -> None:
    with pytest.raises(ValueError, match="has no effect on a context of your own"):
        ConnectOptions(tls=contexts()[1], **options)


@pytest.mark.parametrize("name", ["tls_key", "tls_key_password"])
def test_a_clients_key_needs_its_certificate(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} needs tls_cert"):
        ConnectOptions(tls=True, **{name: "x"})


# --- On the command line ---


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_password_may_come_from_a_file(end: bytes, tmp_path: Path) -> None:
    (tmp_path / "password").write_bytes(b"p\xc3\xa4ss word" + end)
    assert parse_password(f"@{tmp_path / 'password'}") == "p\xe4ss word"


def test_a_password_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_PASSWORD", SECRET)
    assert parse_password("env:KEY_PASSWORD") == SECRET


@pytest.mark.parametrize(
    "text", [SECRET, f"env={SECRET}", "", "env", f"env:{SECRET}", f"ENV:{SECRET}"]
)
def test_a_password_on_the_command_line_is_refused_and_not_shown(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main.main(["echo", "--tls-cert", "x", "--tls-key-password", text])
    error = capsys.readouterr().err
    assert SECRET not in error
    assert "--tls-key-password: " in error
    assert error.count("\n") == 1


def test_the_value_of_a_misspelled_option_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["echo", f"--tls-key-passwort={SECRET}"])
    assert capsys.readouterr().err == (
        "netkit echo: error: unknown option --tls-key-passwort; did you mean --tls-key-password? "
        "(see netkit echo --help)\n"
    )


@pytest.mark.parametrize("data", [b"two\nlines\n", b"x" * (LONGEST_PASSWORD + 1), b"x" * 10**6])
def test_a_file_without_a_password_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "password").write_bytes(data)
    with pytest.raises(ValueError, match="it must be one line of at most 1024 bytes"):
        parse_password(f"@{tmp_path / 'password'}")


def test_the_longest_password_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "password").write_bytes(b"x" * LONGEST_PASSWORD + b"\n")
    assert parse_password(f"@{tmp_path / 'password'}") == "x" * LONGEST_PASSWORD


def test_a_server_decrypts_its_key_with_a_password_from_a_file(tmp_path: Path) -> None:
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    key = serialization.load_pem_private_key(Path(files().key).read_bytes(), None)
    locked = tmp_path / "locked.pem"
    locked.touch(0o600)
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(SECRET.encode()),
        )
    )
    (tmp_path / "password").write_text(SECRET + "\n")
    options = ("--tls-cert", files().cert, "--tls-key", str(locked))
    with Cli("echo", *options, "--tls-key-password", f"@{tmp_path / 'password'}") as server:
        with netkit.connect(server.port, "127.0.0.1") as conn:
            conn.start_tls(contexts()[1], server_hostname="localhost")
            conn.end(b"hello")
            assert conn.read() == b"hello"
        assert SECRET.encode() not in Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
        assert server.lines[0].startswith("listening on")
