import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from lm import checkpoint, config, sample, train
from lm.data import writer
from lm.data.tokenizers import auto
from lm.inference import export_forms, exporter
from lm.interop import importer
from tests.interop import interop_test
from tools import export, hf_import

PIECES = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'cat', 'sat']
PIECES += [f'##{c}' for c in 'abcdefghijklmnopqrstuvwxyz']
PIECES += list('abcdefghijklmnopqrstuvwxyz.,!?;')


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A tiny Llama in a folder, with a tokenizer of its 64 ids."""
  folder = tmp_path_factory.mktemp('hf') / 'in'
  interop_test.folder_of(
    'llama', folder, bos_token_id=2, eos_token_id=[1, 3], pad_token_id=0
  )
  (folder / 'vocab.txt').write_text('\n'.join(PIECES) + '\n')
  return folder


@pytest.fixture(scope='module')
def workdir(source):
  made = source.parent / 'run'
  imported = importer.import_model(source, made)
  assert (imported.architecture, imported.vocab) == ('LlamaForCausalLM', 64)
  return made


@pytest.mark.slow
def test_an_imported_run_is_the_model_and_generates(source, workdir):
  run = checkpoint.restore_run(workdir)
  found = interop_test.load(source)
  params = checkpoint.restore_params(workdir)
  jax.tree.map(np.testing.assert_array_equal, params, found.params)
  assert run.config.model.to_dict() == found.model
  words = run.tokenizer
  assert (words.size, words.bos, words.eos, words.mask) == (64, 2, 1, 4)
  # Data is prepared with the same.
  other = auto.load(str(workdir / 'tokenizer.json'))
  assert (other.bos, other.eos, other.pad) == (2, 1, 0)
  assert other.sha256 == words.sha256
  assert words.encode('the cat sat.') == [
    words.encode('the')[0],
    *(PIECES.index(p) for p in ('##h', '##e', 'cat', 'sat', '.')),
  ]
  one, again = (
    sample.sample(workdir, 'the cat', length=4, temperature=0) for _ in '12'
  )
  assert one == again and one[0].startswith('the cat')


@pytest.mark.slow
def test_an_imported_run_is_a_start(workdir, tmp_path):
  words = checkpoint.restore_run(workdir).tokenizer
  writer.write(tmp_path / 'data', ['the cat sat. ' * 9] * 9, words)
  c = config.load(
    workdir / 'config.json',
    [
      ('init_from', str(workdir)),
      ('steps', '2'),
      ('batch_size', '8'),
      ('optim.warmup', '1'),
      ('data.length', '16'),
      ('data.sources.train.path', str(tmp_path / 'data')),
    ],
  )
  state = train.train(c, tmp_path / 'tuned')
  first = json.loads(
    (tmp_path / 'tuned/metrics.jsonl').read_text().splitlines()[0]
  )
  assert first['loss_nats'] < 5
  moved = jax.tree.map(
    lambda x, y: np.abs(x - y).max(),
    state.params,
    checkpoint.restore_params(workdir),
  )
  assert 0 < max(jax.tree.leaves(moved)) < 0.1


@pytest.mark.slow
def test_export_of_an_import_is_what_came_in(
  source, workdir, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)  # a quickstart writes the data that lack here
  out, text = tmp_path / 'out', tmp_path / 'text.txt'
  text.write_text('the cat sat on the mat. ' * 20)
  command = ['huggingface', f'--workdir={workdir}', f'--output={out}']
  with pytest.raises(config.ConfigError) as caught:
    export.main(command)  # an imported run has no data of its own
  assert str(caught.value) == (
    f'{workdir}: its validation data (none) are not here: give --text=FILE'
  )
  export.main([*command, f'--text={text}'])
  report = json.loads((out / 'report.json').read_text())
  assert report['class'] == 'LlamaForCausalLM'
  assert abs(report['probe']['rise_nats']) < 1e-6
  before, after = (
    safetensors.numpy.load_file(folder / 'model.safetensors')
    for folder in (source, out)
  )
  assert before.keys() == after.keys()
  for name, x in after.items():
    assert x.tobytes() == before[name].tobytes()
  written = json.loads((out / 'config.json').read_text())
  known = json.loads((source / 'config.json').read_text())
  rope = known['rope_parameters']['rope_theta']
  assert written['rope_theta'] == rope and written['dtype'] == 'float32'
  same = written.keys() & known.keys()
  assert {k: written[k] for k in same} == {k: known[k] for k in same}
  words = json.loads((out / 'tokenizer.json').read_text())
  known = json.loads((workdir / 'tokenizer.json').read_text())
  assert known.pop('lm_ids') == {
    'bos': 2,
    'eos': 1,
    'pad': 0,
    'ends': [1, 3],
  }
  assert words == known
  with pytest.raises(config.ConfigError) as caught:
    export.main([*command, f'--text={text}'])
  assert str(caught.value) == f'{out}: is not empty: give another --output'


@pytest.mark.slow
def test_a_published_tagger_is_tuned_and_published_again(tmp_path, capsys):
  source, run = tmp_path / 'in', tmp_path / 'run'
  names = {'0': 'O', '1': 'B-PER', '2': 'I-PER'}
  interop_test.folder_of('bert tags', source, id2label=names)
  (source / 'vocab.txt').write_text('\n'.join(PIECES) + '\n')
  hf_import.main([f'--source={source}', f'--workdir={run}'])
  assert 'classes: O, B-PER, I-PER\n' in capsys.readouterr().out
  lines = ['the O', 'cat B-PER', 'sat I-PER', '']
  (tmp_path / 'words').write_text('\n'.join(lines * 9))
  c = config.load(run / 'config.json', []).unlock()
  c.data = {
    'fn': 'lm.data.finetuning.tasks:make',
    'records': {
      'fn': 'lm.data.finetuning.readers:conll',
      'path': str(tmp_path / 'words'),
    },
    'form': {
      'fn': 'lm.data.finetuning.forms:tag',
      'classes': 3,
      'labels': tuple(names.values()),
    },
    'length': 16,
  }
  c.init_from, c.batch_size, c.optim.warmup = str(run), 8, 0
  train.train(c.lock(), tmp_path / 'tuned')
  out = tmp_path / 'out'
  report = exporter.export(tmp_path / 'tuned', out, export_forms.hugging_face())
  assert report['class'] == 'BertForTokenClassification'
  assert abs(report['probe']['rise_nats']) < 1e-6
  written = json.loads((out / 'config.json').read_text())
  assert written['id2label'] == names
  assert written['label2id'] == {'O': 0, 'B-PER': 1, 'I-PER': 2}


@pytest.mark.slow
def test_what_cannot_be_imported_leaves_no_run(source, workdir, tmp_path):
  def line(folder, made):
    with pytest.raises(config.ConfigError) as caught:
      hf_import.main([f'--source={folder}', f'--workdir={made}'])
    assert caught.value.exit_code == 2
    return str(caught.value)

  assert line(source, workdir) == (
    f'{workdir}: has a run already: give another --workdir'
  )
  bare = interop_test.folder_of('llama', tmp_path / 'bare')
  assert line(bare, tmp_path / 'no') == (
    f'{bare}: holds no tokenizer.json, nor vocab.txt, nor vocab.json with '
    'merges.txt; save the tokenizer with transformers first'
  )
  (bare / 'tokenizer.json').write_text('{"model": 3}')
  assert 'tokenizer.json: ' in line(bare, tmp_path / 'no')
  assert not (tmp_path / 'no').exists()
