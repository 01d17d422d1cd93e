"""Thinning keeps the share that it was asked for, and always the same texts."""

import pyarrow as pa
import pytest

from lm.corpus import stages, thin

TEXTS = [f'document {n}' for n in range(4000)]


def kept(**settings) -> set[str]:
  documents = [stages.Document(x) for x in TEXTS]
  batch = stages.batch(pa.array([''] * len(TEXTS)), documents)
  run = thin.make(**settings).map
  assert run is not None
  return {x.text for x in stages.documents(run(batch)) if not x.reason}


def test_a_share_stays():
  assert 0.22 < len(kept(keep=0.25)) / len(TEXTS) < 0.28
  assert kept(keep=0.25) == kept(keep=0.25)
  assert kept(keep=0.25) < kept(keep=0.5) < kept(keep=1.0) == {*TEXTS}
  assert kept(keep=0.25) != kept(keep=0.25, seed=1)


def test_a_share_out_of_range_is_refused():
  with pytest.raises(ValueError, match='keep=0 must be above 0'):
    thin.make(0)
