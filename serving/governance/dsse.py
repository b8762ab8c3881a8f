"""Signed envelopes: DSSE, version 1.0.2, with Ed25519.

A signature is over PAE(type, body) = "DSSEv1" SP LEN(type) SP type SP LEN(body) SP body, lengths in bytes as decimal
numbers, so that what was signed as one type can never be read as another
(https://github.com/secure-systems-lab/dsse/blob/v1.0.2/protocol.md, envelope.md beside it).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable

import msgspec

from serving.errors import GovernanceError
from serving.governance.keys import PrivateKey, PublicKey

_BASE64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")


class Signature(msgspec.Struct, frozen=True):
    """`keyid` is a hint which key to try, and not to be trusted; `sig` is base64."""

    sig: str
    keyid: str = ""


class Envelope(msgspec.Struct, frozen=True):
    """A body (`payload`, base64) with its type and its signatures."""

    payload: str
    payloadType: str
    signatures: tuple[Signature, ...]


def pae(payload_type: str, body: bytes) -> bytes:
    """The bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body)


def sign(payload_type: str, body: bytes, key: PrivateKey) -> Envelope:
    """An envelope with one signature."""
    signature = Signature(base64.b64encode(key.sign(pae(payload_type, body))).decode(), key.public.id)
    return Envelope(base64.b64encode(body).decode(), payload_type, (signature,))


def verify(envelope: Envelope, payload_type: str, keys: Iterable[PublicKey]) -> tuple[bytes, list[PublicKey]]:
    """The body as it was signed, and those of `keys` that signed it; nothing else of the envelope may be believed.

    Raises:
        GovernanceError: another type, what is not base64, or no signature of any of the keys.
    """
    if envelope.payloadType != payload_type:
        raise GovernanceError(f"the envelope holds {envelope.payloadType!r} and not {payload_type!r}")
    body = _decode(envelope.payload)
    signed = pae(payload_type, body)
    signatures = [_decode(signature.sig) for signature in envelope.signatures]
    found = [key for key in keys if any(key.verifies(signature, signed) for signature in signatures)]
    if not found:
        raise GovernanceError("no signature of the envelope is valid")
    return body, found


def _decode(text: str) -> bytes:
    """Base64 of either alphabet, as the protocol asks."""
    if not _BASE64.fullmatch(text):
        raise GovernanceError("the envelope holds what is not base64")
    try:
        return base64.b64decode(text.translate(str.maketrans("-_", "+/")))
    except binascii.Error as error:
        raise GovernanceError(f"the envelope holds what is not base64: {error}") from None
