"""What every variant of a text classifier takes and gives."""

from __future__ import annotations

from collections.abc import Sequence

from serving.build.interface import Interface
from serving.build.text.recipe import TokenizerRecipe
from serving.registry.manifest import Postprocess, Preprocess, Signature, TensorSpec

TOKENIZER = "tokenizer.json"
#: How a network is exported (see `serving.build.export`): token ids [batch, tokens], 0 is padding.
GRAPH = {
    "example": [[2, 5, 6, 7, 0], [2, 5, 0, 0, 0]],
    "inputs": ["input_ids"],
    "outputs": ["logits"],
    "free": {"input_ids": {"0": "batch", "1": "tokens"}, "logits": {"0": "batch"}},
}


def text_interface(labels: Sequence[str], tokenizer: TokenizerRecipe) -> Interface:
    """`text` BYTES [n] in, `probabilities` FP32 [n, C] and `label` BYTES [n] out."""
    classes = len(labels)
    return Interface(
        signature=Signature(
            inputs=(TensorSpec("text", "BYTES", (-1,)),),
            outputs=(TensorSpec("probabilities", "FP32", (-1, classes)), TensorSpec("label", "BYTES", (-1,))),
        ),
        session=Signature(
            inputs=(TensorSpec("input_ids", "INT64", (-1, -1)),), outputs=(TensorSpec("logits", "FP32", (-1, classes)),)
        ),
        preprocess=Preprocess(
            kind="text",
            tokenizer=TOKENIZER,
            max_tokens=tokenizer.max_tokens,
            buckets=tokenizer.buckets,
            max_chars=tokenizer.max_chars,
        ),
        postprocess=Postprocess(task="classification", logits="logits", labels=tuple(labels)),
    )
