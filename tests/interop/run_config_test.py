"""The run that an import makes: it is sampled, evaluated and tuned."""

import json
from typing import Any

import pytest

from lm import checkpoint, config, evaluate, sample, train
from lm.data import writer
from lm.interop import importer
from tests.interop import interop_test

PIECES = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'cat', 'sat', 'the']
PIECES += [f'##{c}' for c in 'abcdefghijklmnopqrstuvwxyz']
PIECES += list('abcdefghijklmnopqrstuvwxyz.,')
SAMPLED = ('gpt2', 'llama', 'llama3', 'yarn', 'llama tied', 'qwen3', 'gemma3')
SAMPLED += ('t5', 't5 v1.1 tied', 't5 v1.1')
TEXTS = ['the cat sat. ' * 9] * 9
RECORDS = {
  'classify': lambda labels: ''.join(
    json.dumps({'text': 'the cat', 'label': x}) + '\n' for x in labels
  ),
  'tag': lambda labels: '\n'.join(f'cat {x}' for x in labels) + '\n\n',
  'span': lambda labels: json.dumps(
    {
      'data': [
        {
          'paragraphs': [
            {
              'context': 'the cat sat',
              'qas': [
                {
                  'id': '1',
                  'question': 'who',
                  'answers': [{'text': 'cat', 'answer_start': 4}],
                }
              ],
            }
          ]
        }
      ]
    }
  ),
}
# What an evaluator of texts says to a model that cannot score them so.
REFUSED = 'this model cannot score texts with this objective ('


def imported(name, folder, pieces=PIECES):
  changes: dict[str, Any] = {
    'pad_token_id': 0,
    'bos_token_id': 2,
    'eos_token_id': 3,
  }
  if name.endswith('tags'):
    changes['id2label'] = {'0': 'O', '1': 'B-PER', '2': 'I-PER'}
  source = interop_test.folder_of(name, folder / 'in', **changes)
  (source / 'vocab.txt').write_text('\n'.join(pieces) + '\n')
  importer.import_model(source, folder / 'run')
  return folder / 'run'


def tuned(run, folder, tokenizer, *changes):
  """Tunes by the line of docs/fine-tuning.md, for one small step."""
  writer.write(folder / 'texts', TEXTS, tokenizer)
  c = config.load(run / 'config.json', trusted(run, folder))
  kind = c.data.form.fn.rpartition(':')[2] if 'form' in c.data else ''
  if kind:
    records = RECORDS[kind](c.data.form.get('labels', ()))
    (folder / 'records').write_text(records)
  if kind == 'span':
    changes = (*changes, ('data.form.question', '4'))
  small = [('steps', '1'), ('optim.warmup', '0'), ('batch_size', '8')]
  c = config.load(
    run / 'config.json',
    [*trusted(run, folder), *small, ('data.length', '16'), *changes],
  )
  return train.train(c, folder / 'tuned')


def trusted(run, folder):
  """The settings that the line has, by the kind of data."""
  data = json.loads((run / 'config.json').read_text())['data']
  line = [('init_from', str(run))]
  if 'records' in data:
    return [*line, ('data.records.path', str(folder / 'records'))]
  return [*line, ('data.sources.train.path', str(folder / 'texts'))]


def evaluators(folder, path, **changes):
  spec = {'fn': 'lm.evals.likelihood:make', 'path': str(path), 'batch_size': 8}
  spec |= {'length': 16, **changes}
  file = folder / 'evaluators.py'
  file.write_text(
    'from configs import base\n'
    'def get_config():\n'
    '  c = base.get_config()\n'
    f'  c.evals = {{"more": {spec!r}}}\n'
    '  return c.lock()\n'
  )
  return file


@pytest.mark.slow
@pytest.mark.parametrize('name', interop_test.STORED)
def test_an_import_is_sampled_evaluated_and_tuned(name, tmp_path):
  run = imported(name, tmp_path)
  restored = checkpoint.restore_run(run)
  stored = config.load(run / 'config.json', trusted(run, tmp_path))
  assert stored.steps > stored.optim.warmup and not stored.evals
  if name in SAMPLED:
    assert sample.sample(run, 'the cat', length=3)[0].startswith('the cat')
  else:
    with pytest.raises(config.ConfigError, match='cannot continue a text'):
      sample.sample(run, 'the cat', length=3)
  if name == 'bert bare':
    with pytest.raises(config.ConfigError, match=r'outputs of shape \[8, 1, 8'):
      tuned(run, tmp_path, restored.tokenizer)
  else:
    assert int(tuned(run, tmp_path, restored.tokenizer).step) == 1
  # Evaluators of texts score what writes texts, and name what does not.
  objective = {}
  if 'objective' in stored.data and name != 'bert bare':
    objective = {'objective': config.plain(stored.data.objective)}
  file = evaluators(tmp_path, tmp_path / 'texts', **objective)
  command = [f'--workdir={run}', f'--config={file}']
  if objective:
    evaluate.main(command)
    line = json.loads((run / 'evals.jsonl').read_text().splitlines()[0])
    assert 2 < line['metrics']['more/loss_nats'] < 8
  else:
    with pytest.raises(config.ConfigError) as caught:
      evaluate.main(command)
    assert str(caught.value).startswith(REFUSED)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['t5', 'bert', 'bert pretraining'])
def test_an_evaluator_of_the_wrong_kind_is_one_line(name, tmp_path):
  run = imported(name, tmp_path)
  words = checkpoint.restore_run(run).tokenizer
  writer.write(tmp_path / 'texts', TEXTS, words)
  file = evaluators(tmp_path, tmp_path / 'texts')  # causal
  with pytest.raises(config.ConfigError) as caught:
    evaluate.main([f'--workdir={run}', f'--config={file}'])
  assert str(caught.value).startswith(REFUSED)


@pytest.mark.slow
def test_t5_is_tuned_by_what_its_tokenizer_has(tmp_path):
  def objective(pieces, folder):
    run = imported('t5', folder, pieces)
    data = json.loads((run / 'config.json').read_text())['data']
    assert data['length'] * 4 == data['objective']['source']
    return data['objective']['fn'].rpartition(':')[2]

  assert objective(PIECES, tmp_path / 'none') == 'continuation'
  sentinels = [f'<extra_id_{n}>' for n in range(30)]
  pieces = [*PIECES[:5], *sentinels, *'abcdefghijklmnopqrstuvwxyz.,']
  assert objective(pieces, tmp_path / 'some') == 'span_corruption'


def test_a_classifier_reads_records_of_its_classes(tmp_path):
  run = imported('bert classes', tmp_path)
  c = json.loads((run / 'config.json').read_text())
  assert c['data']['form'] == {
    'fn': 'lm.data.finetuning.forms:classify',
    'classes': 3,
    'labels': {'__tuple__': ['no', 'yes', 'maybe']},
    'token_types': True,
    'ends': True,
  }
  assert c['data']['records']['fn'] == 'lm.data.finetuning.readers:texts'
