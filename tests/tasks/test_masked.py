"""Which tokens are hidden, what the model sees of them, and that measuring hides the same ones each time."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from danlu.data import pack
from danlu.data.loader import IGNORED
from danlu.models import encoder
from danlu.tasks.masked import Masked


MASK = 4


def task(size=200):
    torch.manual_seed(0)
    config = encoder.describe(2, size, 128) | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return Masked(encoder.Encoder(config, "language"), MASK)


def rows(documents=20, size=200):
    rng = np.random.default_rng(0)
    found = [rng.integers(5, size, 60).astype(np.int32) for _ in range(documents)]
    return pack.whole(pack.Tokens.of(found, range(documents)), 128, [2], [3])


def test_fifteen_in_a_hundred_are_hidden_in_three_ways():
    """Devlin et al. 2019: of the chosen 80 % are [MASK], 10 % another token, 10 % as they are. Within four standard deviations."""
    ids = torch.randint(5, 30_000, (200_000,))
    masked = task()
    masked.vocabulary = 30_000
    seen, places = masked.hide(ids, ids, torch.Generator().manual_seed(0))
    chosen = torch.zeros(len(ids), dtype=torch.bool)
    chosen[places] = True
    assert abs(len(places) / len(ids) - 0.15) < 4 * (0.15 * 0.85 / len(ids)) ** 0.5
    assert seen[~chosen].equal(ids[~chosen])
    shares = [(seen[places] == MASK).float().mean(), (seen[places] == ids[places]).float().mean()]
    for share, expected in zip(shares, (0.8, 0.1), strict=True):
        assert abs(share - expected) < 4 * (expected * (1 - expected) / len(places)) ** 0.5


def test_marks_are_never_asked_about_and_losses_are_of_the_hidden_tokens():
    masked, (batch, *_) = task(), rows().batches(range(4), 1000)
    masked.model.eval()
    rng = torch.Generator().manual_seed(1)
    masked.begin([batch], "model", rng)
    seen, places = masked.hidden[id(batch)]
    assert (batch.targets[places] != IGNORED).all()
    assert masked.counts(batch, "model") == {"tokens": float(len(places))}
    masked.model.eval()
    found = masked.losses(batch, "model")["tokens"]
    logits = masked.model.logits(masked.model(seen, batch.lengths))
    owner = np.repeat(range(len(batch.lengths)), batch.lengths)
    for document in range(len(batch.lengths)):
        mine = [place for place in places.tolist() if owner[place] == document]
        expected = F.cross_entropy(logits[mine], batch.targets[mine], reduction="sum") if mine else torch.tensor(0.0)
        torch.testing.assert_close(found[document], expected, rtol=1e-5, atol=1e-5)


def test_measuring_does_not_depend_on_the_batches():
    masked, packed = task(), rows()
    masked.model.eval()
    with torch.no_grad():
        whole = masked.measures(packed.batch(range(len(packed))))["loss"]
        parts = [masked.measures(batch)["loss"] for batch in packed.batches(range(len(packed)), 130)]
    torch.testing.assert_close(whole[0], torch.cat([sums for sums, _ in parts]), rtol=1e-5, atol=1e-5)
    assert whole[1].equal(torch.cat([counts for _, counts in parts]))
