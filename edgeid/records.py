"""Encryption of the records of a template store.

AES-256-GCM with a fresh random 96-bit nonce for each record (NIST SP 800-38D, section 8.2.2).
The associated data of a record names everything it belongs to, so a record that is copied,
moved to another person or relabelled no longer opens.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from dataclasses import dataclass

import numpy as np

from edgeid.keys import MasterKey
from edgeid.results import User
from edgeid.runtime.errors import StoreCorruptError, WrongKeyError
from edgeid.templates import Vectors

NONCE_BYTES = 12
_KEY_CHECK = b"EdgeID key check"
_PROFILE_BYTES = 256  # profiles are padded to a multiple: their size must not tell the name's


@dataclass(frozen=True)
class TemplateRow:
    """What a template belongs to: the columns of its row that are not encrypted."""

    record: bytes
    user: bytes
    modality: str
    model: str

    def binding(self) -> tuple[bytes, ...]:
        """The columns as bytes, for the associated data."""
        return self.record, self.user, self.modality.encode(), self.model.encode()


class RecordCipher:
    """Seals and opens the records of one store; each purpose has its own sub-key.

    Args:
        master: the master key.
        store_id: 16 random bytes of the store, the salt of its sub-keys: two stores under
            one master key share no sub-key and no lookup value.
    """

    def __init__(self, master: MasterKey, store_id: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._aead = AESGCM(master.derive("edgeid store records v1", store_id))
        self._lookup_key = master.derive("edgeid store lookup v1", store_id)
        self._store_id = store_id

    def seal_user(self, user: User, user_id: bytes) -> bytes:
        """A person's record, bound to the id of its row."""
        profile = json.dumps(user.to_dict()).encode()
        padded = profile.ljust(-(-len(profile) // _PROFILE_BYTES) * _PROFILE_BYTES)
        return self._seal(padded, b"user", user_id)

    def open_user(self, sealed: bytes, user_id: bytes) -> User:
        """The person of ``seal_user``. Raises StoreCorruptError."""
        return User(**json.loads(self._open(sealed, b"user", user_id)))

    def seal_template(self, vector: Vectors, row: TemplateRow) -> bytes:
        """One embedding, bound to its row, person, modality and model."""
        return self._seal(vector.astype("<f4").tobytes(), b"template", *row.binding())

    def open_template(self, sealed: bytes, row: TemplateRow) -> Vectors:
        """The embedding of ``seal_template``. Raises StoreCorruptError."""
        plain = self._open(sealed, b"template", *row.binding())
        return np.frombuffer(plain, "<f4").astype(np.float32)

    def lookup(self, name: str) -> bytes:
        """The keyed digest under which a user's row is found; it tells nothing of the name."""
        return hmac.digest(self._lookup_key, name.encode(), hashlib.sha256)

    def key_check(self) -> bytes:
        """A record that only the right key opens."""
        return self._seal(_KEY_CHECK, b"key-check")

    def verify_key(self, check: bytes) -> None:
        """Raise WrongKeyError unless ``check`` was made with this key."""
        try:
            right = self._open(check, b"key-check") == _KEY_CHECK
        except StoreCorruptError:
            right = False
        if not right:
            raise WrongKeyError(
                "the key does not open this store: use the key it was made with "
                "(EDGEID_HOME/key, or the key= given then)"
            )

    def _seal(self, plain: bytes, *bound_to: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plain, self._binding(bound_to))

    def _open(self, sealed: bytes, *bound_to: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag

        nonce, body = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        try:
            return self._aead.decrypt(nonce, body, self._binding(bound_to))
        except (InvalidTag, ValueError) as error:
            raise StoreCorruptError(
                "a record of the store was damaged or tampered with: restore a backup, "
                "or remove the store and enroll again"
            ) from error

    def _binding(self, parts: tuple[bytes, ...]) -> bytes:
        # Lengths first, so that ("ab", "c") and ("a", "bc") differ.
        parts = (b"edgeid record v1", self._store_id, *parts)
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    def __repr__(self) -> str:
        return "RecordCipher(<secret>)"
