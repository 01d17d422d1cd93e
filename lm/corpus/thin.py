"""Random thinning: a share of the documents stays, whatever they are.

It makes a corpus smaller without changing what it is like, which is what the
effect of rules and of deduplication has to be compared with.
"""

import hashlib

from lm.corpus import stages


def make(keep: float, seed: int = 0) -> stages.Stage:
  """Makes the stage, which drops with 'thin'.

  The hash of a document decides, so that copies of it stay or go together.

  Args:
    keep: share of the documents that stays.
    seed: chooses others.

  Raises:
    ValueError: the share is out of range.
  """
  if not 0 < keep <= 1:
    raise ValueError(f'keep={keep} must be above 0 and at most 1')

  def drop(document: stages.Document) -> stages.Document:
    data = f'thin {seed}\0{document.text}'.encode()
    draw = int.from_bytes(hashlib.sha256(data).digest()[:8], 'big') / 2**64
    if draw < keep:
      return document
    return document._replace(reason='thin', value=draw)

  return stages.Stage(
    'thin', 1, {'keep': keep, 'seed': seed}, map=stages.each(drop)
  )
