"""Rows of packed documents: each token learned once a pass, no document sees another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from danlu.data import pack
from danlu.data.loader import IGNORED
from danlu.data.pack import Tokens
from danlu.models import decoder, encoder


RNG = np.random.default_rng(0)
DOCUMENTS = [RNG.integers(0, 100, size).astype(np.int32) for size in (5, 17, 1, 40, 8, 3, 16)]
NUMBERS = range(10, 10 + len(DOCUMENTS))


def test_each_token_of_a_stream_is_learned_once_and_rows_are_equally_long():
    rows = pack.stream(Tokens.of(DOCUMENTS, NUMBERS), 16)
    assert rows.lengths.tolist() == [16] * 5 + [10] and rows.size == 90
    batch = rows.batch(range(len(rows)))
    assert batch.ids.tolist() == np.concatenate(DOCUMENTS).tolist()
    expected = [list(each[1:]) + [IGNORED] for each in DOCUMENTS]
    assert batch.targets.tolist() == [token for each in expected for token in each]
    learned = {}
    for row, length in zip(batch.rows, batch.lengths, strict=True):
        learned[row] = learned.get(row, 0) + length
    assert learned == {number: len(each) for number, each in zip(NUMBERS, DOCUMENTS, strict=True)}


def test_a_measured_document_does_not_depend_on_its_neighbours():
    rows = pack.stream(Tokens.of(DOCUMENTS, NUMBERS), 16, aligned=True)
    alone = [pack.stream(Tokens.of([each], [number]), 16) for number, each in zip(NUMBERS, DOCUMENTS, strict=True)]
    mine = [rows.batch([row]) for row in range(len(rows))]
    theirs = [each.batch([row]) for each in alone for row in range(len(each))]
    assert [(b.ids.tolist(), b.targets.tolist(), b.lengths, b.rows) for b in mine] == [
        (b.ids.tolist(), b.targets.tolist(), b.lengths, b.rows) for b in theirs
    ]


@pytest.mark.parametrize("aligned", [True, False])
def test_no_documents_make_no_rows(aligned):
    assert len(pack.stream(Tokens.of([], []), 8, aligned)) == 0 and len(pack.whole(Tokens.of([], []), 8, [1], [2])) == 0


def test_pieces_for_masks_stand_between_their_marks():
    rows = pack.whole(Tokens.of(DOCUMENTS, NUMBERS), 12, [101], [102])
    assert max(rows.lengths) <= 12
    first = rows.piece_lengths[rows.starts[1:-1]]  # what begins a row did not fit into the one before
    assert (rows.lengths[:-1] + first > 12).all() and rows.lengths.sum() == rows.size == 90 + 2 * len(rows.owners)
    batch = rows.batch(range(len(rows)))
    for ids, targets in zip(batch.ids.split(batch.lengths), batch.targets.split(batch.lengths), strict=True):
        assert (ids[0], ids[-1]) == (101, 102) and (targets[0], targets[-1]) == (IGNORED, IGNORED)
        assert targets[1:-1].equal(ids[1:-1])
    learned = batch.targets[batch.targets != IGNORED]
    assert learned.tolist() == np.concatenate(DOCUMENTS).tolist()


@pytest.mark.parametrize("kind", [decoder, encoder])
def test_no_document_in_a_row_sees_another(kind):
    """Bitwise: other neighbours, the same hidden states and the same gradients."""
    config = kind.describe(2, 128, 64) | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    model = (decoder.Decoder if kind is decoder else encoder.Encoder)(config, "language")
    one, two, other = (torch.randint(0, 100, (9,)) for _ in range(3))
    seen = []
    for neighbour in (two, other):
        hidden = model(torch.cat([one, neighbour]), (9, 9))[:9]
        (gradient,) = torch.autograd.grad(hidden.square().sum(), [next(model.parameters())])
        seen.append((hidden, gradient))
    assert seen[0][0].equal(seen[1][0]) and seen[0][1].equal(seen[1][1])
