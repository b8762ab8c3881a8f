"""A byte-pair tokenizer trained on the train split (Sennrich, Haddow & Birch, ACL 2016).

Not WordPiece: its trainer breaks ties in the order of a hash table, so that no two runs agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.build.cache import Tick
from serving.build.text.data import ROWS, read_split

SPECIAL = ("[PAD]", "[UNK]", "[CLS]")
_UNKNOWN_ID, _CLASS_ID = 1, 2

# What the data has masked may reach the server unmasked, so both become one word. Names cannot be
# recognised by rule: a request that is to be judged like the data must come with its names masked.
_MASKS = (
    (r"\[email\]|\b[\w.+-]++@[\w.-]+", " xxemail "),
    (r"\[url\]|(?:https?|ftp)://\S+|www\.\S+", " xxurl "),
    (r"\[phone\]", " xxphone "),
    (r"\[name\]", " xxname "),
)


def train_tokenizer(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Write `tokenizer.json`. Id 0 pads; every text begins with [CLS], so that none is empty."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    split = read_split(needs["data"] / ROWS, "train", parameters["labels"])
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[_UNKNOWN_ID], fuse_unk=True))
    masks = [normalizers.Replace(Regex(pattern), word) for pattern, word in _MASKS]
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.StripAccents(), *masks]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # a run of punctuation is one word
    trainer = trainers.BpeTrainer(
        vocab_size=parameters["vocabulary"], special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(split.texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", _CLASS_ID)])
    tokenizer.enable_truncation(parameters["max_tokens"])
    tokenizer.save(str(out / "tokenizer.json"))
