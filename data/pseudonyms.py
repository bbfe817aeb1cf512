"""Ids that stand for identifiers of a DICOM header: keyed BLAKE2b (RFC 7693), the same for the same key and identifier.

Whoever lacks the key cannot compute them from identifiers, nor search for the identifier of one. The key lies in a
file of the user's, never beside the data or in a run.
"""

import hashlib
import os
import secrets
import tempfile
from pathlib import Path
from typing import Literal

from data.errors import InputError

KEY_BYTES = 32
MAX_KEY_BYTES = 64  # BLAKE2b takes no more
WANTED = f"hexadecimal digits of {KEY_BYTES} to {MAX_KEY_BYTES} random bytes are wanted"


def pseudonym(kind: Literal["patient", "study", "image"], identifier: str, key: bytes) -> str:
    """The id of a patient, study or image: p, s or i, then 16 hexadecimal digits.

    The letter keeps spreadsheets from reading 12e45678 as a number. The kinds are hashed apart: equal identifiers of a
    patient and a study have nothing in common.
    """
    digest = hashlib.blake2b(identifier.encode(), key=key, person=kind.encode(), digest_size=8)
    return kind[0] + digest.hexdigest()


def load_key(path: Path | None = None) -> tuple[bytes, Path]:
    """The key in a file, or the user's own, made at its first use; and where it lies.

    Args:
        path: A file with the key in hexadecimal digits; None: `pseudonym.key` in `cxr-fusion` of the configuration
            folder (`XDG_CONFIG_HOME`, or `~/.config`).

    Raises:
        InputError: No such file, or no key in it, or the own one cannot be made.
    """
    own = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "cxr-fusion" / "pseudonym.key"
    place = own if path is None else Path(path)
    try:
        if path is None and not place.exists():
            _make_key(place)
        text = place.read_text(encoding="ascii").strip()
        key = bytes.fromhex(text)
    except OSError as error:
        raise InputError(f"{place}: cannot be read or made ({error.strerror or error}); --key names a file") from None
    except ValueError:
        raise InputError(f"{place}: no key in it; {WANTED}") from None
    if not KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise InputError(f"{place}: the key has {len(key)} bytes; {WANTED}")
    return key, place


def _make_key(place: Path) -> None:
    """Write a new key, readable for the user alone; of two processes at once, one key stays."""
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(dir=place.parent, prefix=".tmp-")  # with mode 600
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, place)  # unlike a rename, it never replaces a key
    except FileExistsError:
        pass
    finally:
        os.unlink(temporary)
