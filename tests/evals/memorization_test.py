"""Planted likelihoods give planted ranks."""

import json
import math

import pytest

from lm import config
from tests.evals import choice_test


def write(path, rows):
  path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  return str(path)


def evaluate(path, **settings):
  return config.build(
    {
      'fn': 'lm.evals.memorization:exposure',
      'path': path,
      'batch_size': 8,
      'length': 32,
      **settings,
    },
    context=choice_test.CONTEXT,
  )(choice_test.PARAMS)


REFERENCES = [
  {'id': f'r{n}', 'group': 'reference', 'text': text}
  for n, text in enumerate(['b' * 3, 'c' * 4, 'b' * 5, 'b' * 2 + 'c', 'c' * 9])
]


def test_exposure_is_the_rank_by_nats_per_byte(tmp_path):
  """A byte of 'a', 'b', 'c' costs 1, 2, 3 bits; ' ' costs 4."""
  rows = [
    {'id': 1, 'group': 4, 'text': 'aaaa'},  # before all
    {'id': 2, 'group': 4, 'text': 'bc'},  # 2.5: after b, b, and bbc at 2.33
    {'id': 3, 'group': 1, 'text': 'ccc'},  # after all and beside two
    {'id': 4, 'group': 1, 'prompt': 'ccccc', 'text': 'aa'},
  ]
  found = evaluate(write(tmp_path / 'x', [*REFERENCES, *rows]))
  assert [item['id'] for item in found.items] == [
    f'memorization/{n}' for n in (1, 2, 3, 4)
  ]
  assert [item['exposure'] for item in found.items] == pytest.approx(
    [math.log2(6), math.log2(6 / 4), 0, math.log2(6)]
  )
  assert [item['known'] for item in found.items] == [1, 2 / 5, 1 / 5, 1]
  # The likeliest byte is always 'a'.
  assert [item['verbatim'] for item in found.items] == [1, 0, 0, 1]
  metrics = found.metrics
  assert metrics['known/4'] == 0.7 and metrics['known/1'] == 0.6
  assert metrics['exposure/4'] == pytest.approx(math.log2(9) / 2)
  assert metrics['nats_per_byte/4'] == pytest.approx(
    math.log(2) * (1 + 2.5) / 2, rel=1e-5
  )
  assert metrics['nats_per_byte/reference'] == pytest.approx(
    math.log(2) * (2 + 3 + 2 + 7 / 3 + 3) / 5, rel=1e-5
  )


def test_a_model_that_knows_nothing_exposes_nothing(tmp_path):
  rows = [{'id': n, 'group': '1', 'text': 'xyz'} for n in range(3)]
  same = [{**row, 'text': 'zyx'} for row in REFERENCES]
  found = evaluate(write(tmp_path / 'x', [*same, *rows]))
  assert found.metrics['exposure'] == 0 and found.metrics['known'] == 0.5
  assert found.metrics['verbatim'] == 0


@pytest.mark.parametrize(
  ('rows', 'say'),
  [
    (REFERENCES, '0 of 5 texts are planted; give planted texts and others'),
    ([{'id': 'a', 'group': '1', 'text': 'x'}], '1 of 1 texts are planted'),
    (
      [{'id': 'a', 'group': '1'}],
      'line 1: text is missing; its fields: id, gr',
    ),
    ([{'id': 'a', 'group': 1.5, 'text': 'x'}], 'line 1: group'),
  ],
)
def test_other_files_are_refused(tmp_path, rows, say):
  with pytest.raises(ValueError) as caught:
    evaluate(write(tmp_path / 'x', rows))
  assert say in str(caught.value) and '\n' not in str(caught.value)
