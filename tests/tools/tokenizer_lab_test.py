"""The lab measures tokenizers, and finds the pieces that were planted."""

import json
import math
import sys

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from lm import checkpoint, config, errors, types
from lm.data.tokenizers import (
  auto,
  characters,
  pieces,
  sentencepiece,
  tokenizer_json,
  words,
)
from tools.tokenizer_lab import __main__ as lab
from tools.tokenizer_lab import glitches, measures, page

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TEXTS = [f'the cat sat on the mat {n} . ' * 3 for n in range(60)]
ENGLISH = ['the cat sat', 'on the mat', 'naïve cat']
CHINESE = ['猫坐着', '在垫子上', '天真的猫']


def subject(name: str) -> measures.Subject:
  return measures.Subject(name, auto.load(name), pieces.read(name))


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> dict[str, str]:
  """A tokenizer of each of our kinds, trained on TEXTS."""
  root = tmp_path_factory.mktemp('lab')
  names = {'bpe': 'b.model', 'unigram': 'u.model', 'words': 'w.json'}
  names = {kind: str(root / name) for kind, name in names.items()}
  names['characters'] = str(root / 'c.json')
  sentencepiece.train(TEXTS, names['bpe'], 290, 'bpe')
  sentencepiece.train(TEXTS, names['unigram'], 281, 'unigram')
  words.train(TEXTS, names['words'])
  characters.train(TEXTS, names['characters'])
  return names | {'bytes': 'bytes'}


def byte_level(path, planted: dict[str, list[str]]) -> str:
  """Writes a byte-level BPE with planted pieces, and what merges into them."""
  tokens = ['</s>', *ALPHABET, *planted]
  merges = [merge for each in planted.values() for merge in each]
  whole = tokenizer_json.byte_level(
    tokens, merges, [0], 'gpt-2', added=[tokens.index('<|im_start|>')]
  )
  path.write_text(json.dumps(whole))
  return str(path)


def test_planted_glitches_are_found(tmp_path):
  name = byte_level(
    tmp_path / 'planted.json',
    {
      'th': ['t h'],
      'the': ['th e'],
      'zq': ['z q'],  # in no text
      'cat': [],  # no merge makes it
      'ä½': ['ä ½'],  # bytes E4 BD
      '<|im_start|>': [],  # matched as it is
      'at': ['a t'],
    },
  )
  own = subject(name)
  texts = ['the the the at', '<|im_start|>', '你']
  found = glitches.find(own, measures.counts(own, texts), rare=1)
  kept = {
    kind: [x['piece'] for x in entries if len(x['piece']) > 1]
    for kind, entries in found.items()
  }
  assert kept['unreachable'] == ['cat']
  assert kept['never'] == ['th', 'zq']
  assert kept['hardly'] == ['<|im_start|>', 'at']
  assert kept['special_like'] == ['<|im_start|>']
  assert kept['partial'] == ['<0xE4> <0xBD>']


@pytest.mark.parametrize('kind', ['bpe', 'unigram', 'characters', 'words'])
def test_pieces_of_the_training_text_are_no_glitches(made, kind):
  own = subject(made[kind])
  found = glitches.find(own, measures.counts(own, TEXTS), rare=0)
  assert not found['unreachable'] and not found['partial']
  assert not found['special_like']
  # The steps on the way to longer pieces, of BPE, and the line end of words.
  unseen = [x['piece'] for x in found['never']]
  whole = ' '.join(TEXTS)
  assert all(piece in whole or piece == '\n' for piece in unseen)
  assert len(unseen) < 20


def test_a_piece_that_only_other_text_has_is_never_seen(tmp_path):
  name = str(tmp_path / 'm.model')
  sentencepiece.train([*TEXTS, 'magikarp ' * 99], name, 310)
  own = subject(name)
  found = glitches.find(own, measures.counts(own, TEXTS), rare=0)
  assert any('magikarp' in x['piece'] for x in found['never'])


@pytest.mark.parametrize('kind', ['bpe', 'unigram', 'characters', 'words'])
def test_pieces_are_those_that_ids_are_decoded_to(made, kind):
  own = subject(made[kind])
  assert len(own.pieces) == own.tokenizer.size
  for i, piece in enumerate(own.pieces):
    text = own.tokenizer.decode_next([i])
    if piece.kind == pieces.TEXT:
      assert text.strip(' ') == piece.utf8.decode().strip(' ')
    assert (piece.kind == pieces.SPECIAL) == (i < 3)
  kinds = {piece.kind for piece in own.pieces}
  assert kinds <= set(pieces.KINDS)
  assert (pieces.BYTE in kinds) == (kind != 'words')


def test_bytes_are_measured_as_by_hand():
  own = subject('bytes')
  rows = [
    measures.measure(own, measures.Text('en', ENGLISH)),
    measures.measure(own, measures.Text('zh', CHINESE)),
  ]
  measures.add_premiums(rows, 'en')
  english, chinese = rows
  size = len(''.join(ENGLISH).encode())
  assert english['tokens'] == english['bytes'] == size == 31
  assert english['tokens_per_word'] == 31 / 8
  assert english['tokens_per_character'] == 31 / 30
  assert english['tokens_per_sentence'] == 31 / 3
  assert english['split_words'] == 1 and english['fallback'] == 1
  assert english['used'] == len(set(''.join(ENGLISH).encode())) / 256
  assert english['premium'] == 1
  assert chinese['premium'] == len(''.join(CHINESE).encode()) / 31
  assert chinese['tokens_per_word'] is chinese['split_words'] is None
  assert english['lost_bytes'] == 0 and english['lost'] is None


def test_bits_are_those_of_a_code_that_learns():
  ids, size = [0, 1, 0, 0, 2, 1], 5
  seen, bits = np.full(size, 0.5), 0.0
  for i in ids:
    bits -= math.log2(seen[i] / seen.sum())
    seen[i] += 1
  found = np.bincount(ids, minlength=size)
  assert measures.code_bits(found, size) == pytest.approx(bits)


def test_what_is_lost_is_shown_and_has_no_bits(made):
  own = subject(made['words'])
  text = measures.Text('en', ['the cat', 'the cow sat'])
  row = measures.measure(own, text)
  assert row['lost_bytes'] > 0 and row['bits_per_byte'] is None
  first = row['lost']
  assert first[0].startswith('the cow') and '<unk>' in first[1]
  assert row['fallback'] == 1 / 5
  assert row['split_words'] == 0 and row['tokens_per_word'] == 1


def test_texts_that_are_not_parallel_have_no_premium():
  rows = [
    measures.measure(subject('bytes'), measures.Text(name, lines))
    for name, lines in (('en', ENGLISH), ('zh', CHINESE[:2]))
  ]
  measures.add_premiums(rows, 'en')
  assert [row['premium'] for row in rows] == [1, None]
  measures.add_premiums(rows, None)
  assert [row['premium'] for row in rows] == [None, None]


def test_use_is_counted_by_script(made):
  own = subject(made['characters'])
  found = measures.used_by_script(own, measures.counts(own, ['the 1', '猫']))
  assert found['bytes'] == (3, 256)
  assert found['digits'] == (1, 10) and found['blank'] == (1, 1)
  assert found['latin'][0] == 3


def write(path, **texts: list[str]) -> list[str]:
  flags = []
  for name, lines in texts.items():
    (path / f'{name}.txt').write_text('\n'.join(lines))
    flags += ['--texts', f'{name}={path}/{name}.txt']
  return flags


def test_the_program_prints_a_table_json_and_a_page(made, tmp_path, capsys):
  flags = write(tmp_path, en=ENGLISH, zh=CHINESE)
  (tmp_path / 'train.txt').write_text('\n'.join(TEXTS))
  flags += [f'--train={tmp_path}/train.txt', f'--html={tmp_path}/lab.html']
  for name in made.values():
    flags += ['--tokenizer', name]
  lab.main(flags)
  shown = capsys.readouterr().out
  assert shown.splitlines()[0].split()[:3] == [
    *('text', 'tokenizer', 'tokens/word')
  ]
  assert "w.json, zh: loses '猫坐着', gives" in shown
  assert 'bytes of the training texts' in shown
  lab.main([*flags, '--json'])
  report = json.loads(capsys.readouterr().out)
  assert report['base'] == 'en' and report['trained']
  assert len(report['rows']) == 2 * len(made)
  assert [x['tokenizer'] for x in report['glitches']] == [
    *('b.model', 'u.model', 'w.json', 'c.json', 'bytes')
  ]
  text = (tmp_path / 'lab.html').read_text()
  assert text == page.render(report)
  text = text.partition('<script>')[0]  # before that of plotly
  assert '5 tokenizers, 2 texts' in text and 'data-chart="0"' in text
  assert '"series":[{"name":"b.model","values":[1.0,' in text
  assert 'http' not in text.replace('http-equiv', '')


def test_names_and_pieces_in_a_page_are_escaped(tmp_path):
  name = byte_level(tmp_path / '<i>.json', {'<|im_start|>': []})
  report = lab.study([name], [measures.Text('<u>', ENGLISH)])
  text = page.render(report).partition('<script>')[0]
  assert '<i>' not in text and '<u>' not in text and '<|im' not in text
  for shown in ('&lt;i&gt;.json', '&lt;u&gt;', '&lt;|im_start|&gt;'):
    assert shown in text


def test_errors_of_use_are_one_line(made, tmp_path, monkeypatch):
  texts = write(tmp_path, en=ENGLISH)
  for flags, message in (
    (['--tokenizer=no.model'], 'no.model: cannot be read'),
    (['--tokenizer=x.txt'], 'x.txt: unknown kind; give x.model'),
    (['--tokenizer=jieba:99'], 'jieba:99 needs --train'),
    (['--tokenizer=bytes', '--tokenizer=bytes'], 'bytes is given twice'),
    (['--tokenizer=bytes', '--base=eng'], '--base=eng: no such text'),
    (['--tokenizer=bytes', '--texts=en'], '--texts=en: give NAME=FILE'),
    ([], 'give --tokenizer FILE, or --workdir RUN'),
    (['--tokenizer=bytes', '--rare=-1'], '--rare=-1 must be 0 or more'),
    (['--tokenizer=bytes', '--train=no.txt'], 'no.txt'),
  ):
    with pytest.raises(config.ConfigError) as e:
      lab.main([*texts, *flags])
    line = str(e.value)
    assert message in line and '\n' not in line and len(line) <= 200
  monkeypatch.setattr(lab, 'ROOT', tmp_path)
  with pytest.raises(config.ConfigError, match='no texts here: name some'):
    lab.main(['--tokenizer=bytes'])
  monkeypatch.setitem(sys.modules, 'jieba', None)
  with pytest.raises(errors.Missing, match='needs the package jieba: pip'):
    lab.study(['jieba:99'], [measures.Text('zh', CHINESE)], train=CHINESE)


def write_run(workdir, name: str, planted: str) -> None:
  """Writes a run that has learnt all characters of TEXTS but one."""
  own = auto.load(name)
  rng = np.random.default_rng(0)
  table = rng.normal(size=(own.size, 8)).astype(np.float32) * 0.01
  (place,) = own.encode(planted)
  for i in {i for text in TEXTS for i in own.encode(text)} - {place}:
    table[i] = rng.normal(size=8) + 1
  c = {
    'tokenizer': {
      'fn': 'lm.data.tokenizers.characters:make',
      'path': name,
      'reserved': 0,
    },
    'model': {'fn': 'lm.models.embeddings:vectors', 'width': 8},
  }
  meta = {'config': config.to_json(c), 'data': {}, 'tokenizer': own.sha256}
  params = {'embed': {'table': table}}
  with checkpoint.Checkpointer(workdir) as saver:
    saver.save(1, types.TrainState(np.int32(1), params, (), {}), meta)


def test_a_piece_that_a_run_has_not_learnt_is_found(made, tmp_path, capsys):
  write_run(tmp_path / 'run', made['characters'], 'm')
  flags = write(tmp_path, en=TEXTS)
  lab.main([*flags, f'--workdir={tmp_path}/run', '--json'])
  (found,) = json.loads(capsys.readouterr().out)['glitches']
  first, *others = found['nearest']
  assert first['piece'] == 'm' and first['distance'] < 0.1
  assert all(x['distance'] > 0.3 and x['count'] for x in others)
  assert len(others) == len(set(''.join(TEXTS))) - 1
  lab.main([*flags, f'--workdir={tmp_path}/run'])
  assert 'nearest to the vectors of untrained ids' in capsys.readouterr().out
  with pytest.raises(errors.Failure, match='no checkpoint'):
    lab.main([*flags, f'--workdir={tmp_path}/none'])


@pytest.mark.slow  # reads a dictionary
def test_chinese_words_are_cut_by_jieba():
  pytest.importorskip('jieba')
  texts = [measures.Text('zh', ['我们去学习。', '我们不 去'])]
  report = lab.study(['jieba:99', 'bytes'], texts, train=['我们去学习。\n我们'])
  row = report['rows'][0]
  assert row['tokenizer'] == 'jieba:99'
  assert row['tokens'] == 7 and row['fallback'] == 1 / 7
  assert row['lost'] == ['我们不 去', '我们<unk>去']


def test_ten_languages_are_compared_by_default(shared_data, monkeypatch):
  monkeypatch.setattr(lab, 'ROOT', shared_data)
  texts = lab.parallel()
  assert len(texts) == 10 and {len(x.sentences) for x in texts} == {1012}
  report = lab.study(['bytes'], texts, base='eng_Latn')
  premiums = {row['language']: row['premium'] for row in report['rows']}
  # A Russian letter has two bytes, and a Chinese text few characters.
  assert premiums['eng_Latn'] == 1
  assert premiums['rus_Cyrl'] > 1.8 and 0.8 < premiums['zho_Hans'] < 1
