"""A tuned classifier labels texts: in Python, as a program and as a service."""

import contextlib
import http.client
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from lm import checkpoint, config, evaluate, predict, sample, train
from lm.config import untrusted
from lm.inference import classifier
from lm.inference import service as service_lib
from tests import programs

TOKEN = 'a-token-of-the-tests'
LABELS = ['bad', 'good', 'so so']
PAIRS = [['a fox', 'a dog'], ['one', 'two']]


def tuned(folder, fields=('text',)):
  """Trains a classifier for a few steps on a few texts."""
  lines = folder / 'texts.jsonl'
  rows = [
    {'text': f'{n} fox', 'other': f'{n} dog', 'label': LABELS[n % 3]}
    for n in range(12)
  ]
  lines.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  reader = {
    'fn': 'lm.data.finetuning.readers:texts',
    'path': str(lines),
    'fields': fields,
  }
  form = {
    'fn': 'lm.data.finetuning.forms:classify',
    'classes': 3,
    'labels': reader,
    'ends': False,
  }
  c = programs.on_eight(folder, steps=3, save_every=3, optim__warmup=1)
  c = c.copy_and_resolve_references().unlock()
  c.data = {
    'fn': 'lm.data.finetuning.tasks:make',
    'records': reader,
    'form': form,
    'length': 16,
  }
  c.model = {
    'fn': 'lm.models.heads:classify',
    'classes': 3,
    'pool': 'last',
    'body': c.model.to_dict(),
  }
  c.batch_size = 8
  c.evals = {
    'test': {
      'fn': 'lm.evals.classification:classes',
      'records': reader,
      'form': form,
      'batch_size': 8,
      'length': 16,
    }
  }
  train.train(c.lock(), folder / 'run')
  return folder / 'run'


@pytest.fixture(scope='module')
def classes(tmp_path_factory):
  return tuned(tmp_path_factory.mktemp('classes'))


@pytest.fixture(scope='module')
def moved(classes, tmp_path_factory):
  """The run alone, in another place; its records are not there."""
  folder = tmp_path_factory.mktemp('moved')
  shutil.copytree(classes, folder / 'copy')
  return folder / 'copy'


def test_labels_are_those_of_the_evaluator(classes, moved, monkeypatch):
  monkeypatch.setenv(untrusted.VARIABLE, f'{classes.parent}/')
  texts = [f'{n} fox' for n in range(12)]
  found = predict.predict(moved, texts)
  (record,) = [x for x in evaluate.evaluate(classes) if x['step'] == 3]
  right = [next(iter(p)) == LABELS[n % 3] for n, p in enumerate(found)]
  assert record['metrics']['test/accuracy'] == pytest.approx(np.mean(right))
  confidence = np.mean([max(p.values()) for p in found])
  assert record['metrics']['test/confidence'] == pytest.approx(
    confidence, abs=1e-5
  )
  for p in found:
    assert sorted(p) == LABELS and sum(p.values()) == pytest.approx(1)
    assert list(p.values()) == sorted(p.values(), reverse=True)
  # how many others there are changes nothing
  alone = predict.predict(moved, texts[3:4])
  assert alone[0] == pytest.approx(found[3], abs=1e-6)


def test_a_run_that_does_not_know_its_labels_reads_them_if_it_may(
  classes, tmp_path, monkeypatch
):
  """As runs of older versions do not."""
  read = checkpoint.read_meta

  def without(*arguments):
    meta = read(*arguments)
    del meta['data']['labels']
    return meta

  monkeypatch.setattr(checkpoint, 'read_meta', without)
  monkeypatch.setenv(untrusted.VARIABLE, '')
  with pytest.raises(config.ConfigError, match=r'data\.form\.labels\.path'):
    classifier.restore(classes)
  monkeypatch.setenv(untrusted.VARIABLE, f'{classes.parent}/')
  assert list(classifier.restore(classes).labels) == LABELS


def test_pairs_are_compared(tmp_path):
  workdir = tuned(tmp_path, ('text', 'other'))
  found = predict.predict(workdir, PAIRS)
  assert [sorted(x) for x in found] == [LABELS] * 2


def test_other_runs_are_refused(trained, classes):
  with pytest.raises(config.ConfigError) as caught:
    predict.predict(trained, ['x'])
  assert str(caught.value).endswith('which does not classify texts')
  with pytest.raises(config.ConfigError, match='cannot continue a text'):
    sample.sample(classes, 'x')
  with pytest.raises(config.ConfigError, match='7'):
    predict.predict(classes, ['x'], step=7)


@pytest.mark.parametrize(
  'data',
  [
    None,
    {'fn': 'own:data'},
    {'fn': 'own:data', 'length': '16'},
    {'fn': 'own:data', 'length': 16, 'form': 'x'},
    {'fn': 'own:data', 'length': 16, 'form': ['a']},
    {'fn': 'own:data', 'length': 16, 'form': {'a': 1}},
    {'fn': 'own:data', 'length': 16, 'objective': 'x'},
    {'fn': 'own:data', 'form': {'fn': 'lm.data.finetuning.forms:classify'}},
  ],
)
def test_a_run_of_unknown_data_is_refused_in_one_line(
  classes, monkeypatch, data
):
  read = config.read_untrusted

  def altered(text):
    tree = json.loads(config.to_json(read(text)))
    del tree['data']
    return config.from_json(
      json.dumps(tree if data is None else tree | {'data': data})
    )

  monkeypatch.setattr(config, 'read_untrusted', altered)
  name = 'own:data' if data else 'a function that its config does not name'
  assert not classifier.is_one(classes)
  for work, say in (
    (predict.predict, 'does not classify texts'),
    (sample.sample, 'cannot continue a text'),
  ):
    with pytest.raises(config.ConfigError) as caught:
      work(classes, 'x')
    assert str(caught.value) == (
      f'{classes}: it was trained by {name}, which {say}'
    )


@pytest.mark.process
@pytest.mark.slow
def test_the_program_writes_a_line_of_json_for_each_text(moved):
  def run(*flags, stdin=''):
    return subprocess.run(
      [sys.executable, '-m', 'lm.predict', f'--workdir={moved}', *flags],
      cwd=programs.ROOT,
      input=stdin,
      capture_output=True,
      text=True,
    )

  done = run('--text=1 fox', '--text=Füchse')
  assert done.returncode == 0, done.stderr
  lines = [json.loads(x) for x in done.stdout.splitlines()]
  assert [x['text'] for x in lines] == ['1 fox', 'Füchse']
  want = predict.predict(moved, ['1 fox', 'Füchse'])
  for line, p in zip(lines, want, strict=True):
    assert line['label'] == max(line['probabilities'], key=p.__getitem__)
    assert line['probabilities'] == pytest.approx(p, abs=1e-6)
  assert run(stdin='1 fox\r\nFüchse\n').stdout == done.stdout
  done = run('--json', stdin='"1 fox"\n["a", "b"]\n{}\n')
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1] == (
    'error: line 3: not a text or a list of two texts in JSON'
  )


@pytest.mark.parametrize(
  ('flags', 'bad', 'say'),
  [
    ([], b'caf\xe9', 'line 3: not UTF-8 at byte 4; save the text as UTF-8'),
    (['--json'], b'{}', 'line 3: not a text or a list of two texts in JSON'),
    (
      ['--json'],
      b'"\\ud800"',
      'line 3: half of a surrogate pair, which is no text',
    ),
  ],
)
def test_lines_before_a_bad_one_are_answered(
  moved, monkeypatch, capsys, flags, bad, say
):
  stdin = io.TextIOWrapper(io.BytesIO(b'"1 fox"\n"2 fox"\r\n%s\n"x"' % bad))
  monkeypatch.setattr(sys, 'stdin', stdin)
  with pytest.raises(config.ConfigError) as caught:
    predict.main([f'--workdir={moved}', *flags])
  assert str(caught.value) == say
  lines = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
  assert [x['text'].strip('"') for x in lines] == ['1 fox', '2 fox']


@pytest.mark.process
@pytest.mark.slow
def test_a_reader_that_leaves_ends_the_program_quietly(moved, tmp_path):
  lines = tmp_path / 'lines.txt'
  lines.write_text('1 fox\n' * 200)
  with (
    lines.open() as stdin,
    subprocess.Popen(
      [sys.executable, '-m', 'lm.predict', f'--workdir={moved}'],
      cwd=programs.ROOT,
      stdin=stdin,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    ) as program,
  ):
    assert program.stdout is not None and program.stderr is not None
    program.stdout.close()
    stderr = program.stderr.read()
  assert 'Error' not in stderr and 'BrokenPipe' not in stderr
  assert program.returncode == 0, stderr


@pytest.fixture(scope='module')
def service(moved):
  with service_lib.serving(moved, token=TOKEN) as made:
    yield made


def call(service, method, path, value=None):
  connection = http.client.HTTPConnection(
    *service.server_address, timeout=programs.PATIENCE_SECONDS
  )
  with contextlib.closing(connection):
    given = {'Authorization': f'Bearer {TOKEN}'}
    body = None if value is None else json.dumps(value)
    connection.request(method, path, body, given)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_a_classifier_is_served(service, moved):
  texts = ['1 fox', '2 fox']
  status, found = call(service, 'POST', '/v1/classify', {'input': texts})
  assert status == 200 and found['model'] == 'copy'
  want = predict.predict(moved, texts)
  for n, (one, p) in enumerate(zip(found['data'], want, strict=True)):
    assert one['index'] == n and one['label'] == next(iter(p))
    assert one['probabilities'] == pytest.approx(p, abs=1e-6)
  body = {'input': '1 fox', 'model': 'copy', 'user': 'me'}
  assert (
    call(service, 'POST', '/v1/classify', body)[1]['data']
    == (found['data'][:1])
  )
  pair = {'input': [['1 fox', 'x']]}
  assert call(service, 'POST', '/v1/classify', pair)[0] == 200
  status, model = call(service, 'GET', '/v1/models/copy')
  assert status == 200 and model['labels'] == LABELS
  assert call(service, 'POST', '/v1/completions', {'prompt': 'x'})[0] == 404


@pytest.mark.parametrize(
  ('value', 'say'),
  [
    ({}, 'input: must be a text, or a list of texts or of pairs of texts'),
    ({'input': []}, 'input: must be 1 to 16 texts'),
    ({'input': ['x'] * 17}, 'input: must be 1 to 16 texts'),
    ({'input': [1]}, 'input: must be a text, or a list of texts'),
    ({'input': [[]]}, 'input: must be a text, or a list of texts'),
    ({'input': [['a', 'b', 'c']]}, 'input: must be a text, or a list of'),
    ({'input': '\ud800'}, 'input: text has a lone surrogate'),
    ({'input': 'x' * 70_000}, 'input: more than 65536 characters; shorten'),
    ({'prompt': 'x'}, 'prompt: not known here; known: model, input'),
  ],
)
def test_an_input_that_cannot_be_classified_is_one_line(service, value, say):
  status, answer = call(service, 'POST', '/v1/classify', value)
  assert status == 400 and answer['error']['message'].startswith(say)
