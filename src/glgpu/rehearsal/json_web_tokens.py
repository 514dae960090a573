"""Signed JSON Web Tokens with RSA keys (RFC 7519, algorithm RS256): GitLab makes them, Google believes them or not."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

Json = dict[str, Any]


@dataclass(frozen=True)
class Jwt:
    """A signed token, not yet believed.

    Attributes:
        header: Which key and algorithm.
        claims: What it says.
        signed: What the signature is over.
        signature: The signature.
    """

    header: Json
    claims: Json
    signed: bytes
    signature: bytes

    @classmethod
    def read(cls, text: str) -> Jwt:
        """Take a token apart.

        Raises:
            ValueError: It is none.
        """
        head, claims, signature = text.split(".")
        parts = [json.loads(_decoded(part)) for part in (head, claims)]
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError("a part is no object")
        return cls(parts[0], parts[1], f"{head}.{claims}".encode(), _decoded(signature))

    def signed_by(self, key: Mapping[str, Any]) -> bool:
        """Whether an RSA key, in the form of a JWK (RFC 7517), made the signature."""
        numbers = rsa.RSAPublicNumbers(*(int.from_bytes(_decoded(key[part])) for part in ("e", "n")))
        try:
            numbers.public_key().verify(self.signature, self.signed, padding.PKCS1v15(), SHA256())
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """A key pair, made when it is first needed.

    Attributes:
        id: Its id.
    """

    def __init__(self) -> None:
        self.id = secrets.token_hex(20)

    @cached_property
    def _key(self) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)

    @property
    def public(self) -> Json:
        """The public half as a JWK."""
        numbers = self._key.public_key().public_numbers()
        parts = {"n": numbers.n, "e": numbers.e}
        written = {name: _encoded(value.to_bytes((value.bit_length() + 7) // 8)) for name, value in parts.items()}
        return {"kty": "RSA", "kid": self.id, "use": "sig", "alg": "RS256", **written}

    @property
    def private(self) -> str:
        """The private half as PEM."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()

    def sign(self, claims: Mapping[str, Any]) -> str:
        """Make a token."""
        header = {"kid": self.id, "typ": "JWT", "alg": "RS256"}
        text = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        return f"{text}.{_encoded(self._key.sign(text.encode(), padding.PKCS1v15(), SHA256()))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
