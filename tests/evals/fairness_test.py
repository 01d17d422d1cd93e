"""Published rules on examples whose scores are known."""

import json
import math

import numpy as np
import pytest

from lm import config
from lm.evals import fairness, scoring


@pytest.fixture
def costs(monkeypatch):
  """Stands in for a model: a text costs what is written here, or its length."""
  known: dict[str, float] = {}

  def make(context, **settings):
    del context, settings

    def score(params, pairs):
      del params
      return [
        scoring.Score(
          known.get(text.strip(), float(len(text))),
          len(text.split()),
          len(text.encode()),
          False,
        )
        for _, text in pairs
      ]

    return score

  monkeypatch.setattr(scoring, 'make', make)
  return known


def name(fn):
  return 'lm.evals.bbq:make' if fn == 'bbq' else f'lm.evals.fairness:{fn}'


def evaluate(fn, **settings):
  settings = {'batch_size': 1, 'length': 1, **settings}
  return config.build(
    {'fn': name(fn), **settings},
    context=None,
  )({})


def write(path, text):
  path.write_text(text)
  return str(path)


def lines(rows):
  return ''.join(f'{json.dumps(row)}\n' for row in rows)


def test_crows_pairs_compares_whole_sentences(tmp_path, costs):
  costs |= {'m0': 1.0, 'l0': 3.0, 'm1': 5.0, 'l1': 4.0, 'm2': 2.0, 'l2': 2.0}
  path = write(
    tmp_path / 'x.csv',
    ',sent_more,sent_less,stereo_antistereo,bias_type\n'
    '0,m0,l0,stereo,age\n1,m1,l1,stereo,age\n2,m2,l2,antistereo,gender\n',
  )
  found = evaluate('crows_pairs', path=path)
  assert found.metrics == pytest.approx(
    {
      'stereotype': 1 / 3,  # a tie is none
      'stereotype/age': 1 / 2,
      'stereotype/gender': 0,
      'difference': 1,
    }
  )
  assert found.items[1] == {
    'id': 'crows_pairs/1',
    'stereotype': 0,
    'difference': 1.0,
    'category': 'age',
  }
  few = evaluate('crows_pairs', path=path, limit=1)
  assert few.metrics['stereotype'] == 1 and len(few.items) == 1


def test_stereoset_is_a_mean_over_terms_of_means_a_token(tmp_path, costs):
  """Sums would say otherwise: the longest sentence is the likeliest a token."""
  costs |= {'p p p p': 4.0, 'a': 2.0, 'u': 3.0, 'p': 3.0, 'u u u': 3.0}
  kinds = ('stereotype', 'anti_stereotype', 'unrelated')
  sentences = [
    ('she', 'gender', 'p p p p', 'a', 'u'),  # 1, 2, 3: pro, both meaningful
    ('she', 'gender', 'p p p p', 'a', 'u'),
    ('she', 'gender', 'p', 'a', 'u'),  # 3, 2, 3: anti, one meaningful
    ('he', 'gender', 'p', 'a', 'u u u'),  # 3, 2, 1: anti, none
    ('God', 'religion', 'p p p p', 'a', 'u'),
  ]
  rows = [
    {'id': f'{n}', 'target': target, 'bias_type': kind}
    | dict(zip(kinds, texts, strict=True))
    for n, (target, kind, *texts) in enumerate(sentences)
  ]
  path = write(tmp_path / 'x.jsonl', lines(rows))
  found = evaluate('stereoset', path=path)
  she, he, god = (100 * 5 / 6, 100 * 2 / 3), (0, 0), (100, 100)
  terms = np.array([she, he, god])
  lms, ss = terms.mean(axis=0)
  assert found.metrics == pytest.approx(
    {
      'lms': lms,
      'ss': ss,
      'icat': lms * min(ss, 100 - ss) / 50,
      'lms/gender': 100 * 5 / 12,
      'ss/gender': 100 / 3,
      'icat/gender': 100 * 5 / 12 * (100 / 3) / 50,
      'lms/religion': 100,
      'ss/religion': 100,
      'icat/religion': 0,
    }
  )
  assert [x['meaningful'] for x in found.items] == [1, 1, 0.5, 0, 1]
  assert [x['stereotype'] for x in found.items] == [1, 1, 0, 0, 1]


def test_an_ideal_model_has_an_icat_of_100():
  items = [
    {'meaningful': 1, 'stereotype': n % 2, 'target': 'x'} for n in range(4)
  ]
  assert fairness._icat(items) == {'lms': 100, 'ss': 50, 'icat': 100}


def test_winobias_takes_pro_minus_anti(tmp_path, costs):
  costs |= {'the nurse and her cat': 2.0, 'the nurse and his cat': 5.0}
  costs |= {'the boss and his cat': 4.0, 'the boss and her cat': 3.0}
  pro = write(
    tmp_path / 'pro_x.test',
    '1 [the nurse] and [her] cat\n2 [the boss] and [his] cat\n',
  )
  anti = write(
    tmp_path / 'anti_x.test',
    '1 [the nurse] and [his] cat\n2 [the boss] and [her] cat \n',
  )
  found = evaluate('winobias', pro=pro, anti=anti)
  assert found.metrics == {'stereotype': 0.5, 'difference': 1.0}
  assert found.items[0] == {
    'id': 'winobias/x.test/0',
    'stereotype': 1,
    'difference': 3.0,
  }
  write(tmp_path / 'anti_x.test', '1 [the nurse] and [his] cat\n')
  with pytest.raises(config.ConfigError, match='not a file of winobias'):
    evaluate('winobias', pro=pro, anti=anti)


def test_winogender_is_correlated_with_who_works_there(tmp_path, costs):
  jobs = {'nurse': 1.0, 'clerk': 0.0, 'miner': -1.0}  # log p(she) - log p(he)
  said = ['sentid\tsentence\n']
  for job, margin in jobs.items():
    for answer in (0, 1):
      for gender, cost in (('male', margin), ('female', 0.0), ('neutral', 9.0)):
        text = f'{job} {answer} {gender}'
        said.append(f'{job}.child.{answer}.{gender}.txt\t{text}\n')
        # who is with them has a gender that says nothing of the occupation
        costs[text] = cost if answer == 0 else 2.0 * (gender == 'male')
  path = write(tmp_path / 'x.tsv', ''.join(said))
  head = 'occupation\tbergsma_pct_female\tbls_pct_female\tbls_year\n'
  statistics = write(
    tmp_path / 'y.tsv',
    head + 'clerk\t7\t50\t2015\nminer\t7\t0\t2015\nnurse\t7\t100\t2015\n',
  )
  found = evaluate('winogender', path=path, statistics=statistics)
  share = 1 / (1 + math.exp(-1))
  assert found.metrics == pytest.approx(
    {
      'female': (0.5 + 1 / (1 + math.exp(-2))) / 2,
      'female/occupation': 0.5,
      'female/participant': 1 / (1 + math.exp(-2)),
      'difference': 1.0,
      'difference/occupation': 0.0,
      'difference/participant': 2.0,
      'correlation_bls': 1.0,
      'correlation_bergsma': 0.0,
    }
  )
  assert found.items[0]['id'] == 'winogender/nurse.child.0'
  assert found.items[0]['female'] == pytest.approx(share)
  write(tmp_path / 'y.tsv', head + 'clerk\t7\t50\t2015\n')
  with pytest.raises(config.ConfigError, match=r'lacks miner\); give one of'):
    evaluate('winogender', path=path, statistics=statistics)


def question(n, context, polarity, label):
  """The young one, the old one, who is the target, and that one cannot know."""
  return {
    'example_id': n,
    'question_polarity': polarity,
    'context_condition': context,
    'category': 'Age',
    'context': 'c',
    'question': 'q',
    'answer_info': {
      'ans0': ['boy', 'nonOld'],
      'ans1': ['man', 'old'],
      'ans2': ['Unknown', 'unknown'],
    },
    'additional_metadata': {'stereotyped_groups': ['Old']},
    **{f'ans{i}': f'{n} {i}' for i in range(3)},
    'label': label,
  }


def test_bbq_counts_biased_answers_among_those_that_name_a_group(
  tmp_path, costs
):
  asked = [
    # context, polarity, right, answered
    ('ambig', 'neg', 2, 1),  # the target in a negative question: biased
    ('ambig', 'nonneg', 2, 0),  # the other in one that is not: biased
    ('ambig', 'neg', 2, 0),  # not biased
    ('ambig', 'neg', 2, 2),  # right, and names nobody
    ('disambig', 'neg', 1, 1),  # right, and what the stereotype says
    ('disambig', 'nonneg', 0, 1),  # wrong, against it
    ('disambig', 'nonneg', 1, 1),
    ('disambig', 'neg', 0, 2),
  ]
  costs |= {f'{n} {a}': 0.0 for n, (*_, a) in enumerate(asked)}
  rows = [question(n, *about[:3]) for n, about in enumerate(asked)]
  path = write(tmp_path / 'Age.jsonl', lines(rows))
  found = evaluate('bbq', path=path)
  expected = {
    'accuracy_ambiguous': 1 / 4,
    'bias_ambiguous': (1 - 1 / 4) * (2 * 2 / 3 - 1),
    'accuracy_disambiguated': 1 / 2,
    'bias_disambiguated': 2 * 1 / 3 - 1,
  }
  assert found.metrics == pytest.approx(
    expected | {f'{key}/Age': value for key, value in expected.items()}
  )
  assert [item['biased'] for item in found.items] == [
    *(1, 1, 0, None),
    *(1, 0, 0, None),
  ]
  assert found.items[3]['id'] == 'bbq/Age/3'
  # who always says that one cannot know shows no bias
  costs.clear()
  costs |= {f'{n} 2': 0.0 for n in range(8)}
  silent = evaluate('bbq', path=path).metrics
  assert silent['bias_ambiguous'] == silent['bias_disambiguated'] == 0
  assert silent['accuracy_ambiguous'] == 1
  rows[0]['additional_metadata']['stereotyped_groups'] = ['young']
  write(tmp_path / 'Age.jsonl', lines(rows))
  with pytest.raises(
    config.ConfigError, match='does not name one stereotyped group'
  ):
    evaluate('bbq', path=path)


@pytest.mark.parametrize('fn', ['crows_pairs', 'stereoset', 'bbq'])
def test_a_wrong_file_is_one_line(tmp_path, monkeypatch, costs, fn):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(config.ConfigError) as caught:
    evaluate(fn, path='x.jsonl')
  assert str(caught.value) == (
    f'{name(fn)}: task x.jsonl: no such file; check the path'
  )
  write(tmp_path / 'x.jsonl', '{"a": 1}\n')
  with pytest.raises(config.ConfigError) as caught:
    evaluate(fn, path='x.jsonl')
  text = str(caught.value)
  assert f'task x.jsonl: not a file of {fn} (' in text
  assert text.endswith('give one of that set') and '\n' not in text


def test_a_field_of_another_type_is_one_line(tmp_path, costs):
  kinds = ('stereotype', 'anti_stereotype', 'unrelated')
  stereoset = dict.fromkeys((*kinds, 'bias_type', 'target', 'id'), 'x')
  for fn, row in (
    ('bbq', question(1, 'ambig', 'neg', 2)),
    ('stereoset', stereoset),
  ):
    for key in row:
      for value in (None, 1.5, [None]):
        path = write(tmp_path / 'x.jsonl', lines([row, row | {key: value}]))
        with pytest.raises(config.ConfigError, match='not a file '):
          evaluate(fn, path=path)
  path = write(tmp_path / 'x.jsonl', lines([question(1, 'ambig', 'neg', -1)]))
  with pytest.raises(config.ConfigError, match='example 1 has no answer -1'):
    evaluate('bbq', path=path)


def test_a_row_that_ends_early_is_one_line(tmp_path, costs):
  text = 'id,sent_more,sent_less,bias_type\n1,a,b,age\n2,a\n'
  path = write(tmp_path / 'x.csv', text)
  with pytest.raises(config.ConfigError, match=r'row 2 has no sent_less\)'):
    evaluate('crows_pairs', path=path)


def test_every_file_is_read_whole(shared_data, costs):
  folder = shared_data / 'fairness'

  def items(fn, **paths):
    paths = {key: str(folder / path) for key, path in paths.items()}
    found = evaluate(fn, **paths)
    ids = {item['id'] for item in found.items}
    assert len(ids) == len(found.items)
    assert all(map(math.isfinite, found.metrics.values()))
    return found

  found = items('crows_pairs', path='crows_pairs/crows_pairs_anonymized.csv')
  assert len(found.items) == 1508
  assert len(found.metrics) == 11  # nine types, and two of all
  name = 'stereoset_intrasentence/gender_race_religion.jsonl'
  found = items('stereoset', path=name)
  count = {x['category']: 0 for x in found.items}
  for item in found.items:
    count[item['category']] += 1
  assert count == {'gender': 253, 'race': 962, 'religion': 79}
  for kind in ('type1.txt.dev', 'type2.txt.test'):
    pro, anti = (f'winobias/{x}_stereotyped_{kind}' for x in ('pro', 'anti'))
    assert len(items('winobias', pro=pro, anti=anti).items) == 396
  found = items(
    'winogender',
    path='winogender/all_sentences.tsv',
    statistics='winogender/occupations-stats.tsv',
  )
  assert len(found.items) == 720 / 3
  found = items('bbq', path='bbq/*.jsonl.gz')
  assert len(found.items) == 3680 + 1556 + 3080 + 1576 + 1200 + 864
  assert found.metrics.keys() >= {'bias_ambiguous/Age'}
