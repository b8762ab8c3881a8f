"""Ed25519 keys: private ones in a file that only its owner reads, public ones as a line of text.

The library is imported where it is needed: processes that check no signature do not pay for it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from serving.errors import GovernanceError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PREFIX = "ed25519:"


class PublicKey:
    """A public key; `text` is `ed25519:` and the 32 bytes in base64, as a configuration names it.

    Raises:
        GovernanceError: the text is no such key.
    """

    def __init__(self, text: str) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            if not text.startswith(PREFIX):
                raise ValueError
            raw = base64.b64decode(text.removeprefix(PREFIX), validate=True)
            if PREFIX + base64.b64encode(raw).decode() != text:
                raise ValueError  # another spelling of the same bytes: one key must have one name
            self._key = Ed25519PublicKey.from_public_bytes(raw)
        except (ValueError, binascii.Error):
            raise GovernanceError(
                f"{text!r} is no public key: expected {PREFIX} and 32 bytes in base64, as `canarium key show` prints"
            ) from None
        self.text = text

    @property
    def id(self) -> str:
        """SHA-256 of the key in DER (SubjectPublicKeyInfo), hexadecimal."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return hashlib.sha256(self._key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()

    def verifies(self, signature: bytes, message: bytes) -> bool:
        from cryptography.exceptions import InvalidSignature

        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


class PrivateKey:
    """A private key and its public one."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        raw = key.public_key().public_bytes_raw()
        self.public = PublicKey(PREFIX + base64.b64encode(raw).decode())

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


def create_key(path: Path) -> PublicKey:
    """Make a key and write it as PEM (PKCS #8) with mode 0600.

    Raises:
        GovernanceError: the file is there already, or cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise GovernanceError(f"{path}: is there already and is not overwritten; name a new file") from None
    except OSError as error:
        raise GovernanceError(f"{path}: cannot be written: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return PrivateKey(key).public


def load_key(path: Path) -> PrivateKey:
    """Read a private key.

    Raises:
        GovernanceError: it cannot be read, others may read it, or it holds no unencrypted Ed25519 key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        if mode := path.stat().st_mode & 0o077:
            raise GovernanceError(f"{path}: others may read this private key (mode {mode:03o}): chmod 600 {path}")
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise GovernanceError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise GovernanceError(f"{path}: holds no private key; make one with `canarium key create FILE`") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise GovernanceError(f"{path}: holds a key of another kind than Ed25519; make one with `canarium key create`")
    return PrivateKey(key)
