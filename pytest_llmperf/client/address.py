"""Where a server listens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.secret import without_credentials


@dataclass(frozen=True, slots=True)
class Address:
    """The parts of a server's base URL."""

    host: str
    port: int
    tls: bool
    prefix: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Split `http://host:port/prefix`. Raises `ConfigurationError` for anything else."""
        if "@" in url:
            host = re.split("[/?#]", url.rpartition("@")[2])[0]
            msg = f"the URL of {host} carries credentials; set LLMPERF_API_KEY in the environment instead"
            raise ConfigurationError(msg)
        problem = f"not a server's URL: {without_credentials(url)!r}; expected http://HOST:PORT or https://HOST/PREFIX"
        try:
            parts = urlsplit(url)
            port = parts.port
            host = (parts.hostname or "").encode("idna").decode("ascii")  # as the resolver would do
        except ValueError as error:
            raise ConfigurationError(f"{problem} ({without_credentials(error)})") from None
        if parts.scheme not in ("http", "https") or not host or port == 0 or parts.query or parts.fragment:
            raise ConfigurationError(problem)
        if not re.fullmatch("[!-~]+", host + parts.path):
            raise ConfigurationError(f"{problem} (it has a space or another character that must be percent-encoded)")
        tls = parts.scheme == "https"
        return cls(host, port or (443 if tls else 80), tls, parts.path.rstrip("/"))

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self._bracketed}:{self.port}{self.prefix}"

    @property
    def is_loopback(self) -> bool:
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def host_header(self) -> str:
        """The value of a request's `Host` header."""
        default_port = self.port == (443 if self.tls else 80)
        return self._bracketed if default_port else f"{self._bracketed}:{self.port}"

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host
