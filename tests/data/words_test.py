"""A tokenizer of words reads text as WikiText-2's perplexities count it."""

import gzip
import json
import math
import re
from typing import Any

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import tokenizers

from configs import base
from lm import evaluate, fit, sample, types
from lm.data import manifest, shards, writer
from lm.data.tokenizers import auto, export, words
from tests import programs
from tools import train_tokenizer

# In the layout of WikiText: a space at both ends of each line.
PADDED = [' the cat sat . \n \n the cat ran \n', ' the dog sat . \n'] * 3
PLAIN = ['the cat sat .\n\nthe cat ran\n', 'the dog sat .\n'] * 3
BAD_LISTS = (
  '{"words": [], "padded": true}',
  '{"words": ["a", "a"], "padded": true}',
  '{"words": ["a b"], "padded": true}',
  '{"words": [""], "padded": true}',
  '{"words": ["<unk>"], "padded": true}',
  '{"words": ["a"], "padded": 1}',
  '{"words": ["a"]}',
  '{"words": ["\\ud800"], "padded": true}',
  '{"words": "ab", "padded": true}',
  '{"words": [1], "padded": true}',
  '{"words": null, "padded": true}',
)


def trained(path, texts, **settings: Any) -> types.Tokenizer:
  file = str(path / 'words.json')
  words.train(texts, file, **settings)
  return auto.load(file)


@pytest.fixture(scope='module', params=[PADDED, PLAIN], ids=['padded', 'plain'])
def made(request, tmp_path_factory) -> tuple[types.Tokenizer, list[str], str]:
  path = tmp_path_factory.mktemp('words')
  return trained(path, request.param), request.param, str(path / 'words.json')


def test_ids_are_by_frequency_after_five_that_are_not_words(made):
  ids, _, file = made
  kept = ('the', '.', 'cat', 'sat', 'dog', 'ran')
  assert words.read(file).words == kept
  assert (ids.pad, ids.eos, ids.bos) == (0, 1, 2)
  assert ids.size == words.FIRST + 6 and not ids.lossless
  assert ids.encode('the cat\n') == [5, 7, words.LINE_END]
  assert ids.encode('dog \t ran\n\nsat') == [9, 10, 3, 3, 8]


def test_text_in_the_layout_of_the_training_text_comes_back(made):
  ids, texts, _ = made
  for text in texts:
    assert ids.decode(ids.encode(text)) == text
  assert ids.decode([ids.bos, *ids.encode(texts[0]), ids.eos]) == texts[0]


def test_a_continuation_keeps_its_space(made):
  ids, _, _ = made
  whole = ids.encode('the cat ran')
  assert ids.decode_next(whole[1:]) == ' cat ran'
  assert ids.decode(whole).strip() == 'the cat ran'


def test_unknown_words_are_one_id_and_so_is_the_word_unk(made):
  ids, _, _ = made
  assert ids.encode('the <unk> cow </s> <eos> <s>') == [5, *[words.UNKNOWN] * 5]
  assert ids.decode(ids.encode('the cow')).strip() == 'the <unk>'


def test_a_text_spells_no_special_id(made):
  ids, _, _ = made
  text = '<pad> </s> <s> <text end> \0 \u2581 <unk>\r\nx\x1cy\u3000z'
  assert not {ids.pad, ids.eos, ids.bos} & set(ids.encode(text))
  assert len(ids.encode(text)) == 12


@hypothesis.given(text=st.text(st.characters(exclude_categories=['Cs'])))
def test_what_is_decoded_has_the_same_ids(made, text):
  ids, _, _ = made
  found = ids.encode(text)
  assert ids.encode_batch(['x', text])[1] == found
  assert ids.encode(ids.decode(found)) == found
  assert found.count(words.LINE_END) == text.count('\n')


def test_errors_of_use_are_one_line(made):
  ids, _, _ = made
  with pytest.raises(ValueError, match='lone surrogate at character 1'):
    ids.encode('a\ud800')
  for bad in (-1, ids.size):
    with pytest.raises(ValueError, match=f'id {bad} is outside'):
      ids.decode([5, bad])


def test_reserved_ids_change_no_encoding(made):
  plain, _, file = made
  more = auto.load(file, 3)
  assert (more.mask, more.size) == (plain.size, plain.size + 3)
  assert list(more.sentinels) == [plain.size + 2, plain.size + 1]
  assert more.sha256 == plain.sha256 and len(more.word_starts) == more.size
  assert more.decode([5, *range(plain.size, more.size)]) == plain.decode([5])


def test_rare_words_and_words_beyond_the_size_are_cut(tmp_path):
  texts = ['c b a a <unk>', 'b a <unk>', 'd <unk>']
  for settings, kept in (
    ({'least_count': 1}, ('a', 'b', 'c', 'd')),
    ({'least_count': 2}, ('a', 'b')),
    ({}, ('a',)),
    ({'least_count': 1, 'vocab': 8}, ('a', 'b', 'c')),
    ({'least_count': 2, 'vocab': 6}, ('a',)),
  ):
    trained(tmp_path, texts, **settings)
    assert words.read(str(tmp_path / 'words.json')).words == kept


def test_the_order_of_texts_changes_nothing(tmp_path):
  first = trained(tmp_path, PADDED)
  assert trained(tmp_path, reversed(PADDED)).sha256 == first.sha256


def test_errors_of_training_are_one_line(tmp_path):
  for settings, message in (
    ({'vocab': 5}, r'vocab=5: give a whole number from 6 '),
    ({'vocab': True}, r'vocab=True: give a whole number'),
    ({'least_count': 0}, r'least_count=0: give a whole number above 0'),
    ({'least_count': 99}, r'words\.json: no word occurs 99 times; give more'),
  ):
    with pytest.raises(ValueError, match=message) as e:
      trained(tmp_path, PADDED, **settings)
    assert len(str(e.value)) <= 200 and '\n' not in str(e.value)
  with pytest.raises(ValueError, match='lone surrogate'):
    trained(tmp_path, ['\ud800'])
  assert not list(tmp_path.iterdir())


def test_broken_files_are_refused_by_name(tmp_path):
  file = tmp_path / 'w.json'
  for body in BAD_LISTS:
    file.write_text(body)
    with pytest.raises(ValueError, match=r'w\.json: not a list of distinct w'):
      auto.load(str(file))
  with pytest.raises(ValueError, match=r'no\.json: cannot be read'):
    words.is_words('no.json')


def test_a_dataset_says_what_unknown_words_lost(made, tmp_path):
  ids, texts, _ = made
  kept = writer.write(tmp_path / 'kept', texts, ids)
  assert kept.lost_bytes == 0
  lost = writer.write(tmp_path / 'lost', [*texts, texts[1] + 'xyz'], ids)
  assert (lost.lost_bytes or 0) >= 3
  dataset = shards.load(tmp_path / 'kept', ids)
  assert ids.decode(dataset.document(0).tolist()) == texts[0]


def test_the_program_trains_it(tmp_path, capsys):
  (tmp_path / 'x.txt').write_text(PADDED[0] * 3)
  flags = [f'--input={tmp_path}/x.txt', '--kind=words', '--least-count=6']
  assert train_tokenizer.main([*flags, f'--output={tmp_path}/w.json']) == 0
  assert words.read(str(tmp_path / 'w.json')) == (('cat', 'the'), True)
  assert 'w.json: 7 ids' in capsys.readouterr().out
  assert train_tokenizer.main([*flags, f'--output={tmp_path}/w.model']) == 2
  assert 'loaded by its suffix .json' in capsys.readouterr().err


def test_the_exported_file_gives_the_same_ids_and_text(made):
  ids, texts, file = made
  tree = export.to_tokenizer_json(file, 2)
  engine = tokenizers.Tokenizer.from_str(json.dumps(tree))
  engine.encode_special_tokens = True
  blanks = [chr(n) for n in range(0x110000) if chr(n).isspace()]
  spelled = '<pad> </s> <text end> <mask> <unk>\r\ncat\x1cdog\u3000sat\n\n'
  for text in (*texts, spelled, 'cat'.join(blanks), '', '\n', ' the\n'):
    found = ids.encode(text)
    assert engine.encode(text).ids == found
    assert engine.decode(found) == ids.decode(found)
  settings = export.special_files(auto.load(file, 2), tree)
  settings = settings['tokenizer_config.json']
  assert settings['eos_token'] == '<text end>' and 'mask_token' in settings
  assert settings['split_special_tokens']


def test_the_exported_file_can_be_imported(made, tmp_path):
  ids, texts, file = made
  tree = export.to_tokenizer_json(file)
  # As lm.interop.importer writes what config.json says.
  tree['lm_ids'] = {'bos': ids.bos, 'eos': ids.eos, 'pad': ids.pad}
  (tmp_path / 'tokenizer.json').write_text(json.dumps(tree))
  again = auto.load(str(tmp_path / 'tokenizer.json'))
  assert (again.size, again.eos) == (ids.size, ids.eos)
  for text in (*texts, 'the <unk> cow </s> <text end>\n\n', ''):
    found = ids.encode(text)
    assert again.encode(text) == found
    assert again.decode(found) == ids.decode(found)
    assert again.decode_next(found[1:]) == ids.decode_next(found[1:])


def test_wikitext2_has_its_vocabulary_and_predictions(shared_data, tmp_path):
  """33,277 words with `<unk>`, no other unknown one, 245,569 predictions."""
  folder = shared_data / 'lm_en/wikitext2'

  def read(split):
    path = folder / f'wiki.{split}.tokens.gz'
    with gzip.open(path, 'rt', encoding='utf-8', newline='\n') as file:
      return file.read()

  ids = trained(tmp_path, [read('train')])
  unknown_word = 1
  assert ids.size == words.FIRST - unknown_word + 33_277
  for split, count in (('valid', 217_646), ('test', 245_569)):
    text = read(split)
    found = np.asarray(ids.encode(text))
    assert len(found) == count
    spelled = len(re.findall(r'(?<!\S)<unk>(?!\S)', text))
    assert (found == words.UNKNOWN).sum() == spelled > 0
    dataset = writer.write(tmp_path / split, [text], ids)
    assert dataset.lost_bytes == 0 and dataset.tokens == count + 1
    assert manifest.load(tmp_path / split) == dataset


def test_a_run_reports_perplexity_by_word(tmp_path):
  """exp(total nats / words), as published; the end of a document counts in."""
  texts = [PADDED[0] * 20, PADDED[1] * 20]
  ids = trained(tmp_path, texts)
  for part in ('train', 'valid'):
    writer.write(tmp_path / part, texts, ids)
  c = programs.make(tmp_path).unlock()
  c.steps = 1
  c.data.fn = 'lm.data.stream:make'
  del c.data.seconds, c.data.hang_at, c.evals.pause
  c.tokenizer = {
    'fn': 'lm.data.tokenizers.words:make',
    'path': str(tmp_path / 'words.json'),
  }
  c.model, c.fit = base.ngram()
  c.evals.valid.words = sum(len(ids.encode(text)) for text in texts)
  fit.fit(c.lock(), tmp_path / 'run')
  (record,) = evaluate.evaluate(tmp_path / 'run')
  found = {k.removeprefix('valid/'): v for k, v in record['metrics'].items()}
  assert found['tokens'] == c.evals.valid.words + len(texts)
  nats = found['loss_nats'] * found['tokens']
  by_word = math.exp(nats / c.evals.valid.words)
  assert found['word_perplexity'] == pytest.approx(by_word)
  assert 1 < found['perplexity'] < found['word_perplexity'] < 3
  prompt = ' the cat sat . \n'
  (text,) = sample.sample(tmp_path / 'run', prompt, temperature=0, length=5)
  assert text == f'{prompt} \n the cat ran \n'
