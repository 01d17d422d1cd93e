"""A classifier of quality is trained by a program and used by a config."""

import json
from pathlib import Path

from lm.corpus import build
from tests.corpus import build_test
from tools import train_quality


def write(path: Path, texts: list[str]) -> None:
  path.write_text(''.join(json.dumps({'text': x}) + '\n' for x in texts))


def test_a_trained_classifier_drops_what_looks_bad(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  good = [f'The {x} of the river was quiet and clear {x}.' for x in range(200)]
  bad = [f'buy now cheap {x} click here free offer {x} !!!' for x in range(200)]
  (tmp_path / 'raw').mkdir()
  write(tmp_path / 'good.jsonl', good)
  write(tmp_path / 'bad.jsonl', bad)
  flags = ['--good=good.jsonl', '--bad=bad.jsonl', '--output=quality.npz']
  assert train_quality.main(flags) == 0
  assert 'AUC 1.0000, balanced accuracy 100.0%' in capsys.readouterr().out
  first = Path('quality.npz').read_bytes()
  assert train_quality.main(flags) == 0
  assert Path('quality.npz').read_bytes() == first
  write(tmp_path / 'raw/new.jsonl', [good[0] + ' Birds sang.', bad[0] + ' buy'])
  c = build_test.load(
    tmp_path / 'raw',
    stages={'good': {'fn': 'lm.corpus.classifier:make', 'path': 'quality.npz'}},
    order=('good',),
    split_valid=0.0,
  )
  build.run(c, 'out')
  reasons = [x['reason'] for x in build_test.rows('out')]
  assert reasons == ['', 'classifier.bad']


def test_shuffled_words_are_the_same_each_time(tmp_path):
  write(tmp_path / 'x.jsonl', ['a b c d e f g h i j k l m n'] * 3)
  path = [str(tmp_path / 'x.jsonl')]
  settings = train_quality.documents.Settings()
  first, _ = train_quality.read(path, settings, shuffle=True)
  again, _ = train_quality.read(path, settings, shuffle=True)
  assert first == again
  assert sorted(first[0].split()) == list('abcdefghijklmn') != first[0].split()


def test_no_such_input_is_one_line(capsys):
  flags = ['--good=no.txt', '--bad=no.txt', '--output=x.npz']
  assert train_quality.main(flags) == 2
  assert capsys.readouterr().err.startswith('error: input no.txt: no such file')
