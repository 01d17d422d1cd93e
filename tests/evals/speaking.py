"""Stands in for a model that goes on with texts as a test has written them."""

from collections.abc import Mapping

import numpy as np

from lm.data.tokenizers import utf8_bytes
from lm.inference import generate

BYTES = utf8_bytes.make(reserved=1)


def says(monkeypatch, said: Mapping[str, str]) -> None:
  """Lets `generate.generate` say what stands in `said` for each prompt.

  Args:
    monkeypatch: of the test.
    said: continuations by prompt; others have an empty one.
  """

  def go_on(params, batch, *, length, **_):
    rows = np.full((len(batch.tokens), length), BYTES.eos, np.int32)
    for row, ids, segments in zip(
      rows, np.asarray(batch.tokens), np.asarray(batch.segments), strict=True
    ):
      prompt = BYTES.decode(ids[segments > 0].tolist())
      text = BYTES.encode(said.get(prompt, ''))
      row[: len(text)] = text
    return generate.State(*[None] * 8)._replace(tokens=rows)

  monkeypatch.setattr(generate, 'generate', go_on)
