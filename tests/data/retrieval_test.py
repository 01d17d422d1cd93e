"""Search: rows of questions and answers, BM25, wrong answers, evaluation."""

import json
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import config, loss, sharding, train
from lm.data.finetuning import batching, bm25, retrieval_forms
from lm.data.finetuning import records as record_lib
from lm.data.tokenizers import utf8_bytes
from lm.evals import retrieval
from lm.models import heads
from tests import programs
from tools import baselines

BYTES = utf8_bytes.make(reserved=0)
READERS = 'lm.data.finetuning.'


def pair(n: int, question: str, *answers: str) -> Any:
  if len(answers) == 2:
    return record_lib.Preference(f'{n}', question, *answers)
  return record_lib.Pair(f'{n}', question, answers)


def match(length: int = 24, **settings: Any) -> batching.Form:
  return retrieval_forms.match(
    tokenizer=BYTES, length=length, **{'question': 8, **settings}
  )


def decoded(row: batching.Row) -> list[str]:
  """Spells the texts of a row, with ^ and $ for bos and eos."""
  texts = [''] * (max(row.documents) + 1)
  for token, document in zip(row.ids, row.documents, strict=True):
    sign = {BYTES.bos: '^', BYTES.eos: '$'}.get(token)
    texts[document] += BYTES.decode([token]) if sign is None else sign
  return texts


def test_a_row_holds_the_texts_of_a_record():
  form = match()
  first, second, third = form.rows(
    [
      pair(0, 'who', 'me'),
      pair(1, 'a long question', 'an answer that is too long'),
      pair(2, 'who', 'me', 'not you'),
    ]
  )
  assert decoded(first) == ['^who$', '^me$'] and first.cut == 0
  assert decoded(second) == ['^a long$', '^an answer that$']
  assert second.cut == len(' question') + len(' is too long')
  assert decoded(third) == ['^who$', '^me$', '^not you$']
  assert all(x.targets == [0] and x.weights == [1.0] for x in (first, third))
  assert decoded(match(asks='q:', ends=False).rows([pair(0, 'a', 'b')])[0]) == [
    '^q:a',
    '^b',
  ]
  assert form.alone is not None
  for side, texts in enumerate(
    zip(*map(decoded, (first, second)), strict=True)
  ):
    given = [('who', 'a long question'), ('me', 'an answer that is too long')]
    found = form.alone(given[side], side)
    assert [x for (x,) in map(decoded, found)] == list(texts)


def test_a_question_must_leave_room():
  with pytest.raises(
    ValueError, match='question=20 leaves no room in length=24'
  ):
    match(question=20)
  with pytest.raises(ValueError, match='is no pair of texts'):
    match().rows([record_lib.Text('0', ('a',), 'b')])


def vectors_of(texts: int, rows: list[batching.Row], length: int = 24) -> Any:
  model = heads.embed(
    vocab=BYTES.size,
    body=base.encoder(2, length=length, width=16, depth=1),
    texts=texts,
  )
  batch = batching.assemble([[x] for x in rows], match(length), length, BYTES)
  params = model.init(0, batch)
  return model, params, batch


def test_logits_compare_a_question_with_all_answers():
  rows = match(60).rows(
    [
      pair(0, 'one', 'first', 'wrong'),
      pair(1, 'two', 'second', 'first'),  # its wrong one is right for another
      pair(2, 'three', 'first', 'third'),  # the same answer as the first one
      pair(3, 'four', 'fourth'),  # no wrong one
    ]
  )
  model, params, batch = vectors_of(3, rows, 60)
  out = model.apply(params, batch)
  x = np.asarray(out.hidden)
  assert x.shape == (4, 3, 16) and out.logits.shape == (4, 1, 1 + 8)
  answers = [
    'first',
    'wrong',
    'second',
    'first',
    'first',
    'third',
    'fourth',
    '',
  ]
  own = ['first', 'second', 'first', 'fourth']
  for b in range(4):
    got = np.asarray(out.logits[b, 0])
    assert got[0] == pytest.approx(x[b, 0] @ x[b, 1] / 0.05, rel=1e-4)
    for c, text in enumerate(answers):
      if text in ('', own[b]):
        assert got[1 + c] < -1e9, (b, c)
      else:
        want = x[b, 0] @ x[c // 2, 1 + c % 2] / 0.05
        assert got[1 + c] == pytest.approx(want, rel=1e-4), (b, c)


def test_texts_of_a_row_have_the_vectors_that_they_have_alone():
  records = [pair(0, 'one', 'first', 'wrong'), pair(1, 'two', 'next', 'last')]
  form = match(40)
  model, params, batch = vectors_of(3, form.rows(records), 40)
  together = model.apply(params, batch).hidden
  assert form.alone is not None
  for k, side in ((0, 0), (1, 1), (2, 1)):
    texts = [retrieval_forms.sides(x)[k] for x in records]
    rows = form.alone(texts, side)
    alone = batching.assemble([[x] for x in rows], form, 40, BYTES)
    np.testing.assert_allclose(
      model.apply(params, alone).hidden[:, 0], together[:, k], atol=1e-5
    )


def test_a_mesh_compares_the_rows_of_all_devices():
  if jax.device_count() < 8:
    pytest.skip('needs eight devices: CPU simulates them')
  records = [pair(n, f'q{n}', f'answer {n % 5}', f'no {n}') for n in range(8)]
  model, params, batch = vectors_of(3, match(60).rows(records), 60)

  def total(params, batch):
    return loss.token_loss(model.apply(params, batch).logits, batch).total

  run = jax.jit(jax.value_and_grad(total))
  want = run(params, batch)
  with jax.set_mesh(mesh := sharding.make_mesh(fsdp=4, data=2)):
    got = run(params, sharding.put(batch, mesh))
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


def test_bm25_by_hand():
  """Lucene's formula, k1 = 1.5 and b = 0.75, of three texts."""
  index = bm25.Index(['The cat sat.', 'A dog and a cat ran', 'Birds'])
  lengths = [3, 6, 1]
  average = sum(lengths) / 3
  rarity = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))  # of `cat`, in two texts
  want = [
    rarity / (1 + 1.5 * (1 - 0.75 + 0.75 * n / average)) for n in lengths[:2]
  ]
  np.testing.assert_allclose(index.scores('CAT?'), [*want, 0], rtol=1e-5)
  assert index.scores('?').tolist() == [0, 0, 0]
  assert index.scores('unknown').tolist() == [0, 0, 0]


def test_words_of_scripts_without_spaces_are_characters_and_pairs():
  assert bm25.words('北京 is big.') == ['北', '京', 'is', 'big', '北京']


def squad(folder, contexts):
  """Writes questions about passages, in the form of SQuAD."""
  path = folder / 'squad.json'
  articles = [
    {
      'paragraphs': [
        {
          'context': context,
          'qas': [
            {
              'id': f'{n}',
              'question': question,
              'answers': [
                {'text': answer, 'answer_start': context.find(answer)}
              ],
            }
          ],
        }
      ]
    }
    for n, (question, answer, context) in enumerate(contexts)
  ]
  path.write_text(json.dumps({'data': articles}))
  return {'fn': f'{READERS}readers:squad', 'path': str(path)}


def test_wrong_answers_are_like_the_question_and_do_not_answer_it(tmp_path):
  records = squad(
    tmp_path,
    [
      ('what did the cat eat', 'fish', 'the cat did eat fish'),
      ('what did the dog eat', 'meat', 'the dog did eat meat'),
      ('what did a cat eat', 'a fish', 'yes, the cat did eat a fish'),
      ('where is Rome', 'Italy', 'Rome lies in Italy'),
    ],
  )
  spec = {'fn': f'{READERS}retrieval_readers:mined', 'records': records}
  found = config.build(spec).records
  assert found[0].chosen == 'the cat did eat fish'
  # The third text holds the answer `fish`, so it is not wrong.
  assert found[0].rejected == 'the dog did eat meat'
  assert found[2].rejected == 'the cat did eat fish'
  second = config.build({**spec, 'skip': 1}).records
  assert second[0].rejected == 'Rome lies in Italy'
  with pytest.raises(ValueError, match='no question has a wrong text'):
    config.build({**spec, 'skip': 9})


def test_texts_are_pairs_of_themselves(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"text": "one", "label": "x"}\n')
  reader = {'fn': f'{READERS}readers:texts', 'path': f'{tmp_path}/a.jsonl'}
  spec = {'fn': f'{READERS}retrieval_readers:identical', 'records': reader}
  (found,) = config.build(spec).records
  assert (found.source, found.targets) == ('one', ('one',))


def test_ranks_by_hand():
  records = [pair(n, f'q{n}', f'a{n}') for n in range(12)]
  card = record_lib.DatasetCard('x', 'x', 'x', 'x', 'x', 'x')
  data = record_lib.Records(card, records)
  table = np.zeros((12, 12))
  table[0, 0] = 1.0  # the first
  table[1, [1, 2]] = 1.0  # shared with another one: the second
  table[2] = np.arange(12)  # nine are better
  table[3] = np.nan
  found = retrieval.score(data, lambda n: table[n])
  assert [x['rank'] for x in found.items[:5]] == [1, 2, 10, 12, 12]
  assert found.items[1]['ndcg'] == pytest.approx(1 / math.log2(3))
  assert found.items[2]['recall_10'] == 1 and found.items[3]['ndcg'] == 0
  assert found.items[3]['mrr'] == pytest.approx(1 / 12)


WORDS = ('oak', 'ash', 'elm', 'fir', 'yew', 'box', 'bay', 'fig')


def planted(folder, count=240):
  """Writes questions whose answers have their words in a secret alphabet."""
  rng = np.random.default_rng(0)
  lines = []
  for n in range(count):
    first, second = rng.choice(WORDS, 2, replace=False)
    hidden = f'{first}{second}'.translate(
      str.maketrans('abcdefghijklmnopqrstuvwxyz', 'zyxwvutsrqponmlkjihgfedcba')
    )
    lines.append(
      json.dumps({'q': f'{first} {second}', 'a': f'{hidden} {n % 3}'})
    )
  (folder / 'train.jsonl').write_text('\n'.join(lines[:200]))
  (folder / 'test.jsonl').write_text('\n'.join(lines[200:]))

  def read(name):
    return {
      'fn': f'{READERS}pair_readers:pairs',
      'path': f'{folder}/{name}.jsonl',
      'source': 'q',
      'target': 'a',
    }

  return read('train'), read('test')


@pytest.mark.slow
def test_a_run_learns_to_search_where_words_do_not_help(
  one_device, tmp_path, capsys
):
  given, asked = planted(tmp_path)
  form = {'fn': f'{READERS}retrieval_forms:match', 'question': 12}
  c = base.get_config()
  c.tokenizer = {'fn': 'lm.data.tokenizers.utf8_bytes:make', 'reserved': 0}
  c.model = {
    'fn': 'lm.models.heads:embed',
    'texts': 2,
    'body': base.encoder(2, order='pre', length=32, width=32, depth=2),
  }
  c.data = {
    'fn': 'lm.data.finetuning.tasks:make',
    'records': given,
    'form': form,
    'length': 32,
  }
  c.evals = {
    'test': {
      'fn': 'lm.evals.retrieval:make',
      'records': asked,
      'form': form,
      'batch_size': 16,
      'length': 32,
    }
  }
  c.batch_size, c.steps, c.save_every, c.eval_every = 32, 200, 200, 200
  c.optim = base.adamw() | {'peak': 3e-3}
  train.train(c.lock(), tmp_path / 'run')
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  last = [x for x in map(json.loads, lines) if 'test/ndcg' in x][-1]
  config.store(c, tmp_path / 'config.json')
  baselines.main(
    [f'--config={tmp_path}/config.json', f'--workdir={tmp_path}/classic']
  )
  rows = (tmp_path / 'classic' / 'bm25' / 'evals.jsonl').read_text()
  words = json.loads(rows.splitlines()[-1])['metrics']
  assert last['test/ndcg'] > 0.8 > 0.3 > words['test/ndcg']
  assert 'tf_idf' in capsys.readouterr().out


def test_the_package_is_named_where_it_is_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, 'bm25s', None)
  with pytest.raises(ValueError, match='BM25 needs bm25s'):
    bm25.Index(['a'])


def test_the_config_of_a_set_is_whole():
  for name in ('squad', 'cmrc2018', 'tatoeba'):
    c = config.load(
      f'{programs.ROOT}/configs/finetune/retrieval.py:data,{name}', {}.items()
    )
    assert c.model.texts == 3 and c.evals.test.form == c.data.form
    assert jnp.isfinite(c.optim.peak)
