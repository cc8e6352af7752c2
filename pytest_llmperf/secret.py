"""What must not be read by others: keys, and the values of environment variables.

A secret is a string that does not show itself: tracebacks with locals, assertions and messages that quote
it have `***` in its place. What was written by somebody else is searched for secrets before it is quoted.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping

HIDDEN = "***"
_NAME = re.compile(r"KEY|TOKEN(?!IZER)|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
# What a command line has for them. `--max-num-batched-tokens` and `--tokenizer` are none.
_FLAG = re.compile(
    r"--?(.*[-_])?(api[-_]?key|password|passphrase|secret|credentials?|(hf|hub|auth|access|bearer)[-_]token)(=.*)?",
    re.IGNORECASE | re.DOTALL,
)
_USER = re.compile(r"//[^/?#\s]*@")
_QUERY = re.compile(r"[?#][^\s'\"]*")
_SHORTEST = 6
"""Shorter values are no secrets: replacing each `1` or `true` would make a log unreadable."""
_SHORTEST_UNNAMED = 12
"""The same where no name says that it is one: a log also says `FLASHINFER` and `memory`."""


class Secret(str):
    """A string that is used as any other and shown by none: its `repr` is `'***'`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(HIDDEN)


class SecretBytes(bytes):
    """The same of bytes; their `repr` says how many they are."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


class SecretDict(dict[str, str]):
    """Names whose values are not shown: headers, an environment."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<values of {', '.join(sorted(self)[:20])}>"


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name holds a secret."""
    return _NAME.search(name) is not None


def is_secret_flag(argument: str) -> bool:
    """Whether this argument of a command brings a secret, or is followed by one."""
    return _FLAG.fullmatch(argument) is not None


def shown(name: str, value: str) -> str:
    """The value of an environment variable as it may be shown: neither that of a secret nor one that a user gave."""
    return HIDDEN if isinstance(value, Secret) or is_secret_name(name) else value


def fingerprint(name: str, value: str) -> str:
    """What tells two values apart and does not tell them: of a secret nothing at all."""
    if is_secret_name(name):
        return HIDDEN
    return f"sha256:{hashlib.sha256(value.encode(errors='surrogateescape')).hexdigest()[:8]}"


def without_credentials(url: object) -> str:
    """A URL as it may be quoted: without user, password, query and fragment."""
    return _QUERY.sub(lambda found: f"{found[0][0]}{HIDDEN}", _USER.sub(f"//{HIDDEN}@", str(url)))


def concealed(text: str, secrets: Iterable[str]) -> str:
    """The text without these secrets, the longest first."""
    for secret in sorted({str.__str__(one) for one in secrets if one}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def secrets_of(added: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> tuple[Secret, ...]:
    """What a process knows that nobody else should: values that a user gave it, and what it inherits by its name."""
    named = [value for around in (added, environment) for name, value in around.items() if is_secret_name(name)]
    others = [value for value in added.values() if isinstance(value, Secret) and len(value) >= _SHORTEST_UNNAMED]
    return tuple(Secret(value) for value in dict.fromkeys([*named, *others]) if len(value) >= _SHORTEST)
