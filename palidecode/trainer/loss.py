"""The loss of PaliGemma's training: cross entropy of the answer's tokens, ``<eos>`` included.

The prompt attends to itself in both directions and isn't in the loss (source: PaliGemma's report,
section 3.2.2; `transformers` does the same with a processor's ``suffix``).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from palidecode.runtime.paligemma import PaliGemma
from palidecode.trainer.examples import Batch
from palidecode.vocab import LOC_COUNT, Vocabulary


def answer_loss(
    model: PaliGemma, batch: Batch, vocabulary: Vocabulary, soft_loc: float = 0.0
) -> Tensor:
    """Sum the loss over the answers' tokens; divide by `Batch.targets` for the mean.

    Parameters
    ----------
    model : PaliGemma
    batch : Batch
    vocabulary : Vocabulary
    soft_loc : float
        Standard deviation, in bins, of a Gaussian around the true bin that is the target of a loc
        token; 0 for the bin alone.
    """
    features = model.encode_image(batch.pixels)
    features = features.reshape(len(batch.ids), -1, features.shape[-1])  # several pictures in a row
    whole = model.embed_prefix(features, batch.ids, batch.lengths)
    images = features.shape[1]
    hidden = model.language(whole.embeddings, whole.position, batch.prefix + images)[:, images:]
    # Each token is predicted from the one before it; a prompt begins with <bos>.
    logits = model.language.logits(hidden[batch.in_loss.roll(-1, 1)])
    target = batch.ids[batch.in_loss]
    if not soft_loc:
        return F.cross_entropy(logits, target, reduction="sum")
    bins = slice(vocabulary.loc_offset, vocabulary.loc_offset + LOC_COUNT)
    is_loc = (target >= bins.start) & (target < bins.stop)
    near = _gaussian(soft_loc).to(logits.device)[target[is_loc] - bins.start]
    loc = -(logits[is_loc].log_softmax(1)[:, bins] * near).sum()
    return loc + F.cross_entropy(logits[~is_loc], target[~is_loc], reduction="sum")


@cache
def _gaussian(sigma: float) -> Tensor:
    """For each bin a Gaussian over the bins that sums to 1, (1024, 1024)."""
    bins = torch.arange(LOC_COUNT, dtype=torch.float32)
    return (-(bins[:, None] - bins).square() / (2 * sigma**2)).softmax(1)
