"""Continuations of a planted model, beside those of people."""

import json
from typing import Any

import pytest

from lm import config, sharding
from lm.evals import context
from tests.evals import speaking

BYTES = speaking.BYTES
TEXTS = ['abc one two three four five', 'xyz a b a b a b a b a b a b', 'short']
SAID = {'abc ': 'a a a a a a a a', 'xyz ': 'one two three four five'}


@pytest.fixture
def said(monkeypatch):
  """Stands in for a model: goes on as is written in SAID."""
  speaking.says(monkeypatch, SAID)


def make(path, texts=TEXTS, model: Any = None, **settings):
  path.write_text(''.join(f'{json.dumps({"text": x})}\n' for x in texts))
  spec = {'fn': 'lm.evals.continuation:make', 'path': str(path)}
  return config.build(
    {**spec, 'batch_size': 8, 'length': 5, 'new': 23, **settings},
    context=context.Context(model, BYTES, sharding.make_mesh()),
  )


def test_repetition_is_that_of_the_continuations(tmp_path, said):
  found = make(tmp_path / 'x')({})
  # Of the first, five runs of four words are one; the second has no run twice.
  assert [x['repetition'] for x in found.items] == [0.8, 0]
  assert found.metrics['repetition'] == pytest.approx(0.4)
  # People: no run twice, and 2 of 9 runs differ.
  assert found.metrics['repetition/person'] == pytest.approx(7 / 9 / 2)
  assert [x['text'] for x in found.items] == [*SAID.values()]


@pytest.mark.parametrize(
  ('settings', 'say'),
  [
    ({'new': 40}, 'no text has 44 tokens; lower length'),
    ({'new': 0}, 'new=0'),
    ({'language': 'cn'}, 'language'),
    ({'texts': [None]}, 'line 1: text is null'),
    ({'sampler': {'temperature': -1}}, 'temperature=-1 must be'),
    ({'sampler': {'top': 1}}, 'sampler: unknown key top'),
  ],
)
def test_wrong_settings_are_refused(tmp_path, settings, say):
  with pytest.raises(ValueError) as caught:
    make(tmp_path / 'x', **settings)
  assert say in str(caught.value) and '\n' not in str(caught.value)
