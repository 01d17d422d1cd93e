"""lm_eval finds in a run what our own evaluators find, and transformers too."""

import json
import subprocess
import sys
from typing import Any

from lm_eval import evaluator
from lm_eval.api import instance
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from lm import checkpoint, config, errors, sample, sharding
from lm.data import objectives
from lm.evals import context
from lm.inference import engine
from tests import harness_peer
from tools import hf_import, lm_eval

OURS = {'blimp': 'pairs', 'arc_easy': 'choice', 'lambada_openai': 'cloze'}
LONG = 'nobody knows why seven wizards mix big pots of soup'


@pytest.fixture(scope='module')
def model(trained):
  return lm_eval.make(trained)


def request(kind, *arguments):
  return instance.Instance(kind, {}, arguments, 0)


def ask_lm_eval(model, names, folder, limit) -> Any:
  return evaluator.simple_evaluate(
    model,
    tasks=[lm_eval.task(name, folder) for name in names],
    limit=limit,
    bootstrap_iters=0,
  )


def nats(found):
  """Log-likelihoods of a sample, a choice each."""
  return [-score for ((score, _),) in found['resps']]


@pytest.mark.slow
@pytest.mark.parametrize('name', OURS)
def test_lm_eval_finds_what_our_evaluators_find(
  name, trained, model, shared_data
):
  folder = shared_data / 'evals'
  file, _ = lm_eval.TASKS[name]
  found = ask_lm_eval(model, [name], folder, 40)
  run = checkpoint.restore_run(trained)
  fn, reader = f'lm.evals.choice:{OURS[name]}', f'lm.evals.probes:{name}'
  ours = config.build(
    {
      **{'fn': fn, 'batch_size': 8, 'length': 16},
      'task': {'fn': reader, 'path': str(folder / file), 'limit': 40},
    },
    context=context.Context(run.model, run.tokenizer, sharding.make_mesh()),
  )(checkpoint.restore_params(trained))
  assert len(found['samples'][name]) == 40
  told = found['results'][name]
  assert told['acc,none'] == ours.metrics['accuracy']
  if name == 'arc_easy':
    assert told['acc_norm,none'] == ours.metrics['accuracy_per_byte']
  for item, theirs in zip(ours.items, found['samples'][name], strict=True):
    cost = nats(theirs)
    if name == 'blimp':
      want, have = item['margin'], cost[1] - cost[0]
    elif name == 'arc_easy':
      want, have = item['gold_nats'], cost[theirs['target']]
    else:
      want, have = item['loss_nats'], cost[0]
    assert have == pytest.approx(want, abs=1e-6)
    assert item['accuracy'] == theirs['acc']


def test_documents_are_read_in_windows(trained, model, tmp_path):
  (tmp_path / 'long.txt').write_text(LONG)
  run = checkpoint.restore_run(trained)
  ours = config.build(
    {
      **{'fn': 'lm.evals.choice:documents', 'batch_size': 8, 'length': 16},
      'task': {
        'fn': 'lm.evals.probes:documents',
        'path': str(tmp_path / 'long.txt'),
      },
    },
    context=context.Context(run.model, run.tokenizer, sharding.make_mesh()),
  )(checkpoint.restore_params(trained))
  (item,) = ours.items
  found = model.loglikelihood_rolling([request('loglikelihood_rolling', LONG)])
  assert found == [pytest.approx(-item['nats'], abs=1e-6)]
  assert item['tokens'] == len(LONG)


def test_a_tokenizer_that_loses_text_scores_no_documents(trained, monkeypatch):
  run = checkpoint.restore_run(trained)
  encode = run.tokenizer.encode
  lossy = run.tokenizer._replace(
    lossless=False, encode=lambda text: encode(text.lower())
  )
  changed = run._replace(tokenizer=lossy)
  monkeypatch.setattr(checkpoint, 'restore_run', lambda *_: changed)
  model = lm_eval.make(trained)
  (found,) = model.loglikelihood_rolling(
    [request('loglikelihood_rolling', 'seven pots')]
  )
  assert found < 0
  with pytest.raises(config.ConfigError, match='loses some of these texts'):
    model.loglikelihood_rolling(
      [request('loglikelihood_rolling', x) for x in ('seven', 'Seven')]
    )


@pytest.mark.slow
def test_texts_end_at_a_stop_string_or_at_their_length(
  trained, model, monkeypatch
):
  def ask(*asked):
    return model.generate_until([request('generate_until', *x) for x in asked])

  (whole,) = sample.sample(trained, 'the ', length=6, temperature=0)
  whole = whole.removeprefix('the ')
  assert len(whole) == 6
  stop = whole[3]
  assert ask(
    ('the ', {'until': [stop, ''], 'max_gen_toks': 6}),
    ('the ', {'max_gen_toks': 6, 'do_sample': False}),
    ('the ', {'until': stop, 'max_gen_toks': 6, 'temperature': 0.0}),
    ('the ', {'until': ['\0'], 'max_gen_toks': 2}),
  ) == [whole.partition(stop)[0], whole, whole.partition(stop)[0], whole[:2]]
  # Of a long text the end is read: bos, 9 bytes and 6 new ones are 16.
  read = []
  monkeypatch.setattr(
    engine, 'stream', lambda run, rows, *_, **__: read.extend(rows) or []
  )
  ask((LONG, {'max_gen_toks': 6}))
  assert read == [checkpoint.restore_run(trained).tokenizer.encode(LONG)[-9:]]


@pytest.mark.slow
def test_without_bos_a_context_stands_alone(trained):
  run = checkpoint.restore_run(trained)
  ids = run.tokenizer.encode('seven pots')
  params = checkpoint.restore_params(trained)
  bare = lm_eval.make(trained, bos=False)

  def cost(ids, first):
    batch = objectives.padded([ids[:-1]], run.tokenizer.pad)
    logits = np.asarray(run.model.apply(params, batch).logits, np.float64)[0]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return sum(logits[n - 1, ids[n]] for n in range(first, len(ids)))

  found = bare.loglikelihood(
    [
      request('loglikelihood', 'seven', ' pots'),
      request('loglikelihood', '', 'seven pots'),
    ]
  )
  assert [x for x, _ in found] == [
    pytest.approx(cost(ids, 5), abs=1e-4),
    pytest.approx(cost([run.tokenizer.bos, *ids], 1), abs=1e-4),
  ]


def test_a_config_of_lm_eval_is_a_task_too(trained, tmp_path, start):
  rows = [
    {'asked': 'the quick', 'answers': [' brown', ' zzzzz'], 'right': 0}
  ] * 3
  (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  (tmp_path / 'mine.yaml').write_text(
    'task: mine\n'
    'dataset_path: json\n'
    'dataset_kwargs:\n'
    f'  data_files: {{test: {tmp_path}/rows.jsonl}}\n'
    f'  cache_dir: {tmp_path}\n'
    'test_split: test\n'
    'output_type: multiple_choice\n'
    'doc_to_text: "{{asked}}"\n'
    'doc_to_choice: "{{answers}}"\n'
    'doc_to_target: right\n'
    'target_delimiter: ""\n'
  )
  process = start(
    'tools.lm_eval',
    [
      f'--workdir={trained}',
      f'--tasks={tmp_path}/mine.yaml',
      f'--output={tmp_path}/all.json',
    ],
  )
  assert process.wait() == 0, process.text()
  told = json.loads((tmp_path / 'all.json').read_text())
  assert told['results']['mine']['acc,none'] == 1
  assert len(told['samples']['mine']) == 3
  assert 'mine  acc' in process.text()


def test_what_cannot_be_asked_is_refused_in_a_line(
  trained, model, tmp_path, monkeypatch, capsys
):
  with pytest.raises(config.ConfigError, match=r'max_gen_toks=16 must be 1 to'):
    model.generate_until([request('generate_until', 'a', {'max_gen_toks': 16})])
  drawn = {'max_gen_toks': 2, 'do_sample': True}
  with pytest.raises(config.ConfigError, match='do_sample: texts are the like'):
    model.generate_until([request('generate_until', 'a', drawn)])
  with pytest.raises(errors.Missing, match='no checkpoint'):
    lm_eval.make(tmp_path)
  with pytest.raises(
    ValueError, match=r'task .*blimp\.jsonl\.gz: no such file'
  ):
    lm_eval.task('blimp', tmp_path)
  workdir = f'--workdir={trained}'
  with pytest.raises(
    config.ConfigError,
    match='--tasks: blip: no such task or file; did you mean blimp',
  ):
    lm_eval.main([workdir, '--tasks=blip'])
  with pytest.raises(SystemExit):
    lm_eval.main([workdir, '--tasks=blimp'])
  assert '--data: give the folder that has blimp/' in capsys.readouterr().err
  monkeypatch.setitem(sys.modules, 'lm_eval.api.model', None)
  with pytest.raises(config.ConfigError, match=r"pip install -e '.\[lmeval\]'"):
    lm_eval.make(trained)


def test_a_run_that_masks_scores_and_says_that_it_has_no_prompt(
  trained, monkeypatch
):
  run = checkpoint.restore_run(trained)
  c = run.config.copy_and_resolve_references().unlock()
  c.data.objective = {'fn': 'lm.data.masking:masked'}
  words = run.tokenizer._replace(mask=0)
  changed = run._replace(config=c, tokenizer=words)
  monkeypatch.setattr(checkpoint, 'restore_run', lambda *_: changed)
  masked = lm_eval.make(trained)
  ((score, _),) = masked.loglikelihood([request('loglikelihood', 'a', 'b')])
  assert score < 0
  with pytest.raises(config.ConfigError, match='goes on from no text: leave'):
    masked.generate_until([request('generate_until', 'a', {'max_gen_toks': 2})])
  with pytest.raises(config.ConfigError, match='leave --no_bos out'):
    lm_eval.make(trained, bos=False)


@pytest.mark.slow
@pytest.mark.process
def test_a_random_gpt2_scores_as_in_transformers(peer, shared_data, tmp_path):
  words = tokenizers.Tokenizer(models.BPE())
  words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  words.decoder = decoders.ByteLevel()
  words.train_from_iterator(
    [LONG] * 9,
    trainers.BpeTrainer(
      vocab_size=280,
      special_tokens=['<|endoftext|>'],
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ),
  )
  (tmp_path / 'words').mkdir()
  words.save(str(tmp_path / 'words/tokenizer.json'))
  ends = dict.fromkeys(('bos_token', 'eos_token'), '<|endoftext|>')
  (tmp_path / 'words/tokenizer_config.json').write_text(
    json.dumps({'tokenizer_class': 'PreTrainedTokenizerFast', **ends})
  )

  def call(*arguments):
    done = subprocess.run(
      [peer, harness_peer.__file__, *map(str, arguments)],
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr

  tiny = {'n_positions': 64, 'n_embd': 32, 'n_layer': 2, 'n_head': 4}
  source, workdir = tmp_path / 'gpt2', tmp_path / 'run'
  call('random', json.dumps(tiny), source, tmp_path / 'words')
  hf_import.main([f'--source={source}', f'--workdir={workdir}'])
  bare = lm_eval.make(workdir, bos=False)
  found = ask_lm_eval(bare, OURS, shared_data / 'evals', 10)
  asked = [
    (arguments, response)
    for name in OURS
    for one in found['samples'][name]
    for arguments, (response,) in zip(
      one['arguments'], one['resps'], strict=True
    )
  ]
  assert len(asked) == 10 * (2 + 4 + 1)
  (tmp_path / 'pairs.json').write_text(json.dumps([x for x, _ in asked]))
  call('score', source, tmp_path / 'pairs.json', tmp_path / 'found.json')
  theirs = json.loads((tmp_path / 'found.json').read_text())
  for (_, (ours, greedy)), (cost, likeliest) in zip(asked, theirs, strict=True):
    assert ours == pytest.approx(cost, rel=1e-5)
    assert greedy == likeliest
