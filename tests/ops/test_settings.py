"""The options of a server as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from secure import files
from support import echo, serving

from netkit.core.blocklist import BlockList
from netkit.core.options import Options
from netkit.ops import settings


def test_each_option_that_is_shown_is_what_an_operator_may_write(tmp_path: Path) -> None:
    (tmp_path / "deny.txt").write_text("10.0.0.0/8\n")
    written = {
        "idle_timeout": "1.5",
        "max_connections": "7",
        "when_full": "refuse",
        "refusal": "go away",
        "allow": "10.0.0.0/8,192.0.2.1",
        "deny": f"@{tmp_path / 'deny.txt'}",
        "no_delay": "off",
        "encoding": "latin-1",
        "max_message": "off",
        "tls_cert": "-",
        "tls_alpn": "h2,http/1.1",
    }
    for name, text in written.items():
        value = settings.parse(name, text)
        checked = Options.rows[name].check(name, value)
        assert settings.shown(name, checked).replace("iso8859-1", "latin-1") == text, name


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("tls_key_password", "secret", "..."),
        ("handler_args", {"token": "secret"}, "..."),
        ("handler_args", {}, "-"),
        ("tls_cert", Path("/x/cert.pem"), "/x/cert.pem"),
        ("tls_cert", b"-----BEGIN", "..."),
        ("tls_sni", {"a.example": ("x", None)}, "..."),
        ("tls_alpn", (), "-"),
        ("refusal", "bye\n", r"bye\n"),
        ("max_line", 10, "10"),
        ("proxy_from", None, "127.0.0.0/8,::1"),
        ("tls_cert", None, "-"),
        ("idle_timeout", None, "off"),
    ],
)
def test_secrets_are_hidden_and_the_rest_is_printable(name: str, value: Any, text: str) -> None:
    assert settings.shown(name, value) == text


def test_a_value_that_contradicts_other_options_changes_nothing() -> None:
    with serving(echo) as server:
        with pytest.raises(ValueError, match="starttls needs tls_cert"):
            settings.change([server], "starttls", "on")
        assert server._options.starttls is False
        settings.change([server], "tls_cert", str(files().server))
        assert server.tls_context() is not None
        with pytest.raises(ValueError, match="allow: No such file"):
            settings.change([server], "allow", "@/missing")


def test_rules_are_shown_in_their_order() -> None:
    assert settings.shown("deny", BlockList(["10.0.0.1", "10.1.0.0/16"])) == "10.0.0.1,10.1.0.0/16"
