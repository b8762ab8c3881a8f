"""Keys and envelopes: what was signed, and nothing else, is believed."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from governance_kit import key_at

from serving.errors import GovernanceError
from serving.governance.dsse import Envelope, Signature, pae, sign, verify
from serving.governance.keys import PublicKey, create_key, load_key

TYPE = "application/vnd.in-toto+json"


def test_what_is_signed_is_the_specifications_encoding() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("é", b"") == "DSSEv1 2 é 0 ".encode()  # lengths are those of bytes


def test_an_envelope_is_what_other_tools_read(tmp_path: Path) -> None:
    key = key_at(tmp_path / "key")
    document = json.loads(msgspec.json.encode(sign(TYPE, b"body", key)))
    assert set(document) == {"payload", "payloadType", "signatures"}
    assert base64.b64decode(document["payload"]) == b"body"
    (signature,) = document["signatures"]
    assert signature["keyid"] == key.public.id
    raw = base64.b64decode(key.public.text.removeprefix("ed25519:"))
    Ed25519PublicKey.from_public_bytes(raw).verify(
        base64.b64decode(signature["sig"]), b"DSSEv1 28 application/vnd.in-toto+json 4 body"
    )


def test_only_what_was_signed_by_the_key_is_believed(tmp_path: Path) -> None:
    key, other = key_at(tmp_path / "key"), key_at(tmp_path / "other")
    envelope = sign(TYPE, b"body", key)
    body, signers = verify(envelope, TYPE, [other.public, key.public])
    assert (body, [one.text for one in signers]) == (b"body", [key.public.text])
    forged = msgspec.structs.replace(envelope, payload=base64.b64encode(b"bodY").decode())
    for wrong, keys in ((forged, [key.public]), (envelope, [other.public]), (envelope, [])):
        with pytest.raises(GovernanceError, match="no signature of the envelope is valid"):
            verify(wrong, TYPE, keys)
    with pytest.raises(GovernanceError, match=r"holds 'application/vnd.in-toto\+json' and not 'text/plain'"):
        verify(envelope, "text/plain", [key.public])
    retyped = msgspec.structs.replace(envelope, payloadType="text/plain")
    with pytest.raises(GovernanceError, match="no signature"):
        verify(retyped, "text/plain", [key.public])


def test_base64_of_either_alphabet_is_read_and_nothing_else(tmp_path: Path) -> None:
    key = key_at(tmp_path / "key")
    envelope = sign(TYPE, b"\xfb\xff\xfe", key)
    assert "+" in envelope.payload
    safe = Envelope(
        envelope.payload.replace("+", "-").replace("/", "_"),
        TYPE,
        (Signature(envelope.signatures[0].sig.replace("+", "-").replace("/", "_"), "wrong hint"),),
    )
    assert verify(safe, TYPE, [key.public])[0] == b"\xfb\xff\xfe"
    for broken in ("a", "a b=", "é"):
        with pytest.raises(GovernanceError, match="not base64"):
            verify(msgspec.structs.replace(envelope, payload=broken), TYPE, [key.public])


def test_a_private_key_is_its_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    public = create_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(path).public.text == public.text
    before = path.read_bytes()
    with pytest.raises(GovernanceError, match="is there already and is not overwritten"):
        create_key(path)
    assert path.read_bytes() == before
    path.chmod(0o640)
    with pytest.raises(GovernanceError, match=r"others may read this private key \(mode 040\): chmod 600"):
        load_key(path)
    with pytest.raises(GovernanceError, match="cannot be written"):
        create_key(tmp_path / "absent" / "key")


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("hello")
    path.chmod(0o600)
    with pytest.raises(GovernanceError, match="holds no private key"):
        load_key(path)
    path.write_bytes(X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(GovernanceError, match="another kind than Ed25519"):
        load_key(path)
    with pytest.raises(GovernanceError, match="cannot be read"):
        load_key(tmp_path / "absent")
    other_spelling = "ed25519:" + "A" * 42 + "B="  # decodes to what "A" * 43 does
    for text in ("", "ed25519:", "ed25519:aGVsbG8=", "rsa:" + "A" * 44, other_spelling):
        with pytest.raises(GovernanceError, match="is no public key"):
            PublicKey(text)


def test_a_key_that_openssl_made_signs(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    key = load_key(path)
    assert verify(sign(TYPE, b"x", key), TYPE, [PublicKey(key.public.text)])[0] == b"x"
