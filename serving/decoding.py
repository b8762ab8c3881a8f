"""What decoding raises when a document was not written by us, or not whole."""

from __future__ import annotations

import zipfile
import zlib
from lzma import LZMAError
from tokenize import TokenError
from typing import Final

import msgspec

#: Of msgspec's own errors a text that is not UTF-8 is none, nor is what is nested too deep.
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

#: Of `gzip`: files that cannot be read, are cut short, or are damaged within.
UNPACKABLE: Final = (OSError, EOFError, zlib.error)

#: Of `zipfile`: archives that are damaged, encrypted or compressed in an unknown way.
UNZIPPABLE: Final = (
    zipfile.BadZipFile,
    zlib.error,
    LZMAError,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)

#: Of NumPy, of an archive of arrays: the tokenizer's error passes through it where a header is damaged.
UNLOADABLE: Final = (TokenError, *UNZIPPABLE)
