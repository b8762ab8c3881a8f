"""What decoding raises when a document was not written by us, or not whole."""

from __future__ import annotations

from typing import Final

import msgspec

#: Of msgspec's own errors a text that is not UTF-8 is none, nor is what is nested too deep.
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
