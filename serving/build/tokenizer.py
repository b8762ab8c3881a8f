"""A WordPiece tokenizer trained on the train split (Schuster & Nakajima, 2012)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.build.cache import Tick
from serving.build.data import ROWS, read_split

SPECIAL = ("[PAD]", "[UNK]", "[CLS]")
UNKNOWN_ID, CLASS_ID = 1, 2

# What the data has masked reaches the server unmasked, so both become one word. Names cannot be
# recognised in a request, so their mask is left out.
_MASKS = (
    (r"\[email\]|\b[\w.+-]++@[\w.-]+", " xxemail "),
    (r"\[url\]|(?:https?|ftp)://\S+|www\.\S+", " xxurl "),
    (r"\[phone\]", " xxphone "),
    (r"\[name\]", " "),
)


def train_tokenizer(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Write `tokenizer.json`. Id 0 pads; every text begins with [CLS], so that none is empty."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    split = read_split(needs["data"] / ROWS, "train", parameters["labels"])
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL[UNKNOWN_ID]))
    masks = [normalizers.Replace(Regex(pattern), word) for pattern, word in _MASKS]
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.StripAccents(), *masks]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # a run of punctuation is one word
    trainer = trainers.WordPieceTrainer(
        vocab_size=parameters["vocabulary"], special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(split.texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", CLASS_ID)])
    tokenizer.enable_truncation(parameters["max_tokens"])
    tokenizer.save(str(out / "tokenizer.json"))
