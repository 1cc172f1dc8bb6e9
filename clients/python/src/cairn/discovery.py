"""Where the daemon is, and the token that proves we may use it. The same order as the command line's: what the caller says,
`CAIRN_API`, `api` in `HOME/config.toml`, `HOME/ready.json`, then 127.0.0.1:4180. The token is sent to a loopback address or over
TLS, never in the clear to another machine."""

from __future__ import annotations

import ipaddress
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from cairn.errors import BadInput

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_API = "127.0.0.1:4180"


@dataclass(frozen=True)
class Found:
    """A daemon's address, who said so, and the token if it may be sent there."""

    target: str
    tls: bool
    source: str
    token: str | None = field(repr=False)


def find(api: str | None = None, home: str | os.PathLike[str] | None = None, token: str | None = None) -> Found:
    """Looks in every place; nothing is connected yet."""
    folder = Path(home) if home is not None else default_home()
    places = [
        ("api=", api),
        ("CAIRN_API", os.environ.get("CAIRN_API")),
        ("config.toml", _in_config(folder, "api")),
        ("ready.json", _in_ready_note(folder)),
        ("default", DEFAULT_API),
    ]
    source, address = next((source, address) for source, address in places if address)
    target, tls = _parse(address, source)
    token = token or os.environ.get("CAIRN_TOKEN") or (_read(folder / "api.token") or "").strip()
    return Found(target, tls, source, token if token and (tls or _is_loopback(target)) else None)


def default_home() -> Path:
    """`CAIRN_HOME`, else the platform's data folder."""
    if os.environ.get("CAIRN_HOME"):
        return Path(os.environ["CAIRN_HOME"])
    if os.environ.get("XDG_DATA_HOME"):
        return Path(os.environ["XDG_DATA_HOME"]) / "cairn"
    return Path.home() / ".local/share/cairn"


def _in_config(home: Path, key: str) -> str | None:
    """No file says nothing; one that can't be read or understood is refused, for what it says matters."""
    path = home / "config.toml"
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8")).get(key)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise _broken(path, str(error)) from None
    if value is not None and not isinstance(value, str):
        raise _broken(path, f"{key} is not a text in quotes")
    return value


def _broken(path: Path, why: str) -> BadInput:
    return BadInput("bad_input", str(path), why, "mend the file or remove it")


def _in_ready_note(home: Path) -> str | None:
    try:
        api = json.loads(_read(home / "ready.json") or "{}").get("api")
    except (ValueError, AttributeError):
        return None
    return api if isinstance(api, str) else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _parse(address: str, source: str) -> tuple[str, bool]:
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port is not None
    except ValueError:
        good = False
    if not good:
        raise BadInput("bad_input", address, f"{source} is no address of a daemon", "127.0.0.1:4180")
    return parts.netloc, parts.scheme == "https"


def _is_loopback(target: str) -> bool:
    host = urlsplit(f"//{target}").hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
