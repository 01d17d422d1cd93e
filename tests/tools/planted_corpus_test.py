"""A planted corpus holds what its truth says, at the rates that were asked."""

from collections import Counter
from collections.abc import Iterable
import hashlib
import json
from pathlib import Path
import random
import re

import pytest

from lm.corpus import texts
from tools import planted_corpus, planted_faults, planted_texts

EVALS = 'evals/arc_easy/valid.jsonl'


def lines(path: Path) -> list[dict]:
  return [json.loads(x) for x in path.read_text(encoding='utf-8').splitlines()]


def write(folder: Path, *flags: str) -> None:
  argv = [f'--output={folder}', '--workers=1', *flags]
  assert planted_corpus.main(argv) == 0


def rows(folder: Path) -> dict[str, str]:
  """Reads the texts of a corpus by id; no id comes twice."""
  found = [x for path in folder.glob('part-*.jsonl') for x in lines(path)]
  result = {x['id']: x['text'] for x in found}
  assert len(result) == len(found)
  return result


def digest(folder: Path) -> str:
  paths = sorted(folder.iterdir())
  whole = hashlib.sha256()
  for path in paths:
    whole.update(path.name.encode() + path.read_bytes())
  return whole.hexdigest()


@pytest.fixture(scope='module')
def corpus(shared_data, tmp_path_factory):
  """A corpus of three copies: its texts and its truth by kind."""
  folder = tmp_path_factory.mktemp('corpus')
  write(
    folder,
    '--megabytes=4',
    '--copies=3',
    f'--evals={shared_data / EVALS}',
    '--eval=0.05',
    '--canaries=2',
  )
  truth: dict[str, list[dict]] = {}
  for x in lines(folder / 'truth.jsonl'):
    truth.setdefault(x.pop('kind'), []).append(x)
  return folder, rows(folder), truth


def words(text: str) -> list[str]:
  return texts.Text(text).words


def test_size_and_names(corpus):
  folder, given, _ = corpus
  size = sum(len(x.encode()) for x in given.values())
  assert 3.6e6 < size < 4.6e6
  names = {x.name for x in folder.iterdir()}
  assert names == {
    'truth.jsonl',
    *(f'part-{copy:03d}-{n}.jsonl' for copy in range(3) for n in range(6)),
  }


def test_rates_are_those_that_were_asked(corpus):
  _, given, truth = corpus
  added = Counter(
    {kind: len(truth[kind]) for kind in ('exact', 'reflowed', 'junk')}
  )
  near = {x['id'] for x in truth['near']}
  families = {x['of'] for x in truth['near']} - near
  count = len(given) - added.total() - len(near)
  shares = {kind: n / count for kind, n in added.items()} | {
    'near': len(families) / count,
    'eval': len(truth['eval']) / count,
    'personal': len({x['id'] for x in truth['personal']}) / count,
  }
  wanted = planted_corpus.Rates(eval=0.05)._asdict()
  for kind, share in shares.items():
    # documents with canaries get nothing else: a tenth of these
    assert 0.5 * wanted[kind] < share < 1.5 * wanted[kind], kind


def test_copies_are_copies(corpus):
  _, given, truth = corpus
  for x in truth['exact']:
    assert given[x['id']] == given[x['of']]
  for x in truth['reflowed']:
    assert words(given[x['id']]) == words(given[x['of']])
  assert any(given[x['id']] != given[x['of']] for x in truth['reflowed'])


def grams(text: str) -> set[tuple[str, ...]]:
  found = words(text)
  return {tuple(found[n : n + 5]) for n in range(len(found) - 4)}


def test_similarities_are_true(corpus):
  _, given, truth = corpus
  for x in truth['near']:
    a, b = grams(given[x['id']]), grams(given[x['of']])
    assert x['jaccard'] == len(a & b) / len(a | b)


def test_similarities_are_spread(corpus):
  drawn = [x['jaccard'] for x in corpus[2]['near']]
  for low in (0.3, 0.5, 0.7, 0.85):
    assert sum(low <= x < low + 0.15 for x in drawn) > 10


def test_unmarked_documents_are_no_copies(corpus):
  _, given, truth = corpus
  marked = {x['id'] for kind in ('exact', 'reflowed') for x in truth[kind]}
  marked |= {x['id'] for x in truth['junk']}
  left = [' '.join(words(x)) for i, x in given.items() if i not in marked]
  repeated = [x for x, n in Counter(left).items() if n > 1]
  # The real texts have some duplicates of their own.
  assert len(repeated) <= 0.005 * len(left)


def test_canaries_are_planted_as_often_as_told(corpus):
  _, given, truth = corpus
  assert sorted(len(x['ids']) for x in truth['canary']) == [
    1, 1, 4, 4, 16, 16, 64, 64
  ]  # fmt: skip
  assert len({x['text'] for x in truth['canary']}) == 8
  for x in truth['canary']:
    carriers = {i for i, text in given.items() if x['text'] in text}
    assert carriers == set(x['ids'])
    assert sum(given[i].count(x['text']) for i in carriers) == len(x['ids'])


def test_evaluation_items_are_where_they_are_told(corpus, shared_data):
  _, given, truth = corpus
  items = lines(shared_data / EVALS)
  assert {x['form'] for x in truth['eval']} == set(planted_faults.EVAL_FORMS)
  for x in truth['eval']:
    assert x['file'] == str(shared_data / EVALS)
    item, text = items[x['row']], given[x['id']]
    if x['form'] in ('verbatim', 'shuffled'):
      assert item['question'] in text
    if x['form'] == 'verbatim':
      assert '\n'.join([item['question'], *item['choices']]) in text
    if x['form'] == 'unpunctuated':
      plain = re.sub(r'[^\w\s]|_', '', item['question'])
      assert plain in text
    else:
      found = f' {" ".join(words(text))} '
      for choice in item['choices']:
        assert f' {" ".join(words(choice))} ' in found


def test_personal_data_is_where_it_is_told(corpus):
  _, given, truth = corpus
  for x in truth['personal']:
    assert x['text'] in given[x['id']]
  assert len({x['type'] for x in truth['personal']}) == 7


def test_all_forms_of_junk(corpus):
  _, given, truth = corpus
  assert {x['form'] for x in truth['junk']} == set(planted_faults.JUNK_FORMS)
  assert all(given[x['id']].strip() for x in truth['junk'])


@pytest.mark.process
def test_the_same_bytes_with_any_number_of_workers(shared_data, tmp_path):
  flags = ['--megabytes=1', '--copies=3', '--canaries=0']
  write(tmp_path / 'a', *flags)
  write(tmp_path / 'b', *flags, '--workers=2')
  write(tmp_path / 'c', *flags, '--seed=1')
  assert digest(tmp_path / 'a') == digest(tmp_path / 'b')
  assert digest(tmp_path / 'a') != digest(tmp_path / 'c')


def test_rates_can_be_nothing(shared_data, tmp_path):
  rates = planted_corpus.Rates._fields
  write(
    tmp_path / 'a',
    '--megabytes=0.3',
    '--canaries=0',
    *(f'--{x}=0' for x in rates),
  )
  assert lines(tmp_path / 'a' / 'truth.jsonl') == []
  assert rows(tmp_path / 'a')


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--near=0.9', '--junk=0.2'], 'the rates add up to 1.17; lower them to 1'),
    (
      ['--megabytes=0.2'],
      '--canaries=1 needs 85 documents, and more than a quarter of the',
    ),
    (['--evals=README.md'], 'README.md, line 1: --evals takes JSON lines'),
  ],
)
def test_flags_that_cannot_be_used(
  shared_data, tmp_path, capsys, flags, message
):
  argv = [f'--output={tmp_path / "a"}', '--megabytes=1', *flags]
  assert planted_corpus.main(argv) == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1


def test_a_folder_with_files_is_left_alone(tmp_path, capsys):
  (tmp_path / 'mine').touch()
  assert planted_corpus.main([f'--output={tmp_path}']) == 2
  assert f'{tmp_path} is not empty; name another' in capsys.readouterr().err


def test_data_that_is_not_there(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(planted_corpus, 'ROOT', tmp_path / 'none')
  assert planted_corpus.main([f'--output={tmp_path / "a"}']) == 2
  assert 'is not there: set LM_DATA to the folder of' in capsys.readouterr().err


def test_texts_that_do_not_suffice(tmp_path, monkeypatch, capsys):
  texts_there = [f'{n} is a text' for n in range(10_000)]
  monkeypatch.setattr(planted_texts, 'documents', lambda *_: texts_there)
  argv = [f'--output={tmp_path / "a"}', '--megabytes=1', '--canaries=0']
  assert planted_corpus.main(argv) == 2
  assert capsys.readouterr().err == (
    'error: there are only 0 MB of texts: give --copies=7\n'
  )
  assert planted_corpus.main([*argv, '--copies=7', '--workers=1']) == 0


def substitution(given: Iterable[str]) -> planted_texts.Substitution:
  return planted_texts.Substitution(
    planted_texts.Vocabulary(given), random.Random(0)
  )


def test_a_word_becomes_the_same_word_everywhere():
  given = ' '.join(
    f'{chr(97 + n // 26)}{chr(97 + n % 26)}x' for n in range(600)
  )
  fn = substitution([given])
  changed = fn.apply(given)
  assert changed.split()[:150] == given.split()[:150]  # the most frequent
  assert changed.split()[150:] != given.split()[150:]
  assert sorted(changed.split()) == sorted(given.split())  # one to one
  word = given.split()[-1]
  other = fn.apply(word)
  text = f'{word}, {word.upper()}\n\n{word.capitalize()}-{word} 12  unknown'
  assert fn.apply(text) == (
    f'{other}, {other.upper()}\n\n{other.capitalize()}-{other} 12  unknown'
  )


def test_chinese_characters_are_words():
  given = ''.join(chr(0x4E00 + n) for n in range(500))
  changed = substitution([given]).apply(f'{given}，{given}')
  assert changed[:50] == given[:50]
  one, other = changed.split('，')
  assert one == other != given
  assert sorted(one) == sorted(given)


def test_wrapping_keeps_words():
  text = 'one two  three four\nfive six seven'
  wrapped = planted_texts.wrap(text, 10)
  assert wrapped.split() == text.split()
  assert max(map(len, wrapped.split('\n'))) <= 11
