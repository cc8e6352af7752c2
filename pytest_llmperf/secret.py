"""What must not be read by others: keys and passwords, by the names that they go by and by their form.

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
# What services call their keys, a URL with a password, a private key in a file's form.
_KEY = re.compile(r"\b(hf_|sk-|gh[opsu]_|github_pat_|glpat-|nvapi-|xox[a-z]-|AKIA|eyJ)[\w.-]{8}|//[^/\s]+@|-----BEGIN")
_OPAQUE = re.compile(r"(?![/~.])(?=[^A-Za-z]*[A-Za-z])(?=\D*\d)(?![A-Z0-9_]*\Z)[\w.+/=-]{16,}", re.ASCII)
"""Letters and digits without a break: no path, and no constant such as `TRITON_ATTN_VLLM_V1`."""
_PIECES = re.compile(r"[\s,:;|]+")


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


def is_secret_value(value: str) -> bool:
    """Whether this has the form of a key, whatever it is called: rather once too often than too seldom."""
    text = str.__str__(value)
    return _KEY.search(text) is not None or any(_OPAQUE.fullmatch(piece) for piece in _PIECES.split(text))


def shown(name: str, value: str) -> str:
    """The value of an environment variable as it may be shown, so that a command can be repeated; not that of a secret.

    Of those that a user gave, also none that looks like one.
    """
    is_secret = is_secret_name(name) or (isinstance(value, Secret) and is_secret_value(value))
    return HIDDEN if is_secret else str.__str__(value)


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
    """What a process knows that nobody else should: by their names, and by their form what a user gave it."""
    named = [value for around in (added, environment) for name, value in around.items() if is_secret_name(name)]
    others = [value for value in added.values() if isinstance(value, Secret) and is_secret_value(value)]
    return tuple(Secret(value) for value in dict.fromkeys([*named, *others]) if len(value) >= _SHORTEST)
