"""Evaluates a run by lm-evaluation-harness, without torch and without the hub.

  python -m tools.lm_eval --workdir=runs/a --data=../shared/data/evals \\
    --tasks=blimp,arc_easy,lambada_openai --limit=200

Tasks are those of TASKS, whose files lie below --data, or configs of lm_eval
itself: --tasks=mine.yaml. In your own program write

  lm_eval.simple_evaluate(model=tools.lm_eval.make('runs/a'), tasks=...)

Needs the extra `lmeval`. A sentence of BLiMP is scored as it is, without
the space that lm_eval's own config puts before it, so that scores equal those
of `lm.evals.choice`, with two differences: lm_eval counts equal likelihoods as
right, and its acc_norm counts characters, not bytes.
"""

import argparse
from collections.abc import Mapping, Sequence
import importlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import jax

from lm import checkpoint, config, errors, sharding, types
from lm.data import objectives
from lm.data.finetuning import record_files
from lm.data.tokenizers import vocabulary
from lm.evals import context as context_lib
from lm.evals import scoring
from lm.inference import engine
from lm.reporting import metrics_log
from lm.runtime import compilation_cache, memory

# By name: the file, and the config that tells lm_eval how to use its rows.
TASKS = {
  'arc_easy': (
    'arc_easy/test.jsonl',
    {
      'output_type': 'multiple_choice',
      'doc_to_text': 'Question: {{question}}\nAnswer:',
      'doc_to_choice': '{{choices}}',
      'doc_to_target': '{{gold}}',
      'metric_list': [{'metric': 'acc'}, {'metric': 'acc_norm'}],
    },
  ),
  'blimp': (
    'blimp/blimp.jsonl.gz',
    {
      'output_type': 'multiple_choice',
      'doc_to_text': '',
      'doc_to_choice': '{{[sentence_good, sentence_bad]}}',
      'doc_to_target': 0,
      'target_delimiter': '',
      'metric_list': [{'metric': 'acc'}],
    },
  ),
  'lambada_openai': (
    'lambada_openai/lambada_test.jsonl.gz',
    {
      'output_type': 'loglikelihood',
      'doc_to_text': "{{text.split(' ')[:-1]|join(' ')}}",
      'doc_to_target': "{{' '+text.split(' ')[-1]}}",
      'metric_list': [{'metric': 'perplexity'}, {'metric': 'acc'}],
    },
  ),
}


def make(
  workdir: str | Path,
  *,
  step: int | None = None,
  batch_size: int = 16,
  length: int | None = None,
  bos: bool = True,
) -> Any:
  """Makes an `lm_eval.api.model.LM` of a checkpoint.

  Args:
    workdir: of the run.
    step: of the checkpoint; None is the newest.
    batch_size: rows at a time; changes nothing but speed.
    length: L, the most positions that the model reads; None: all positions that
      it has, or as many as it was trained on.
    bos: whether every text begins with bos, as in `scoring.make`. False puts
      bos before empty contexts only, as lm_eval does with models of
      transformers whose tokenizer adds none.

  Raises:
    config.ConfigError: lm_eval is not installed, a setting is out of range, the
      run's objective scores no text, or its tokenizer's file has changed.
    errors.Failure: there is no sound checkpoint.
  """
  api = _lm_eval('api.model')
  c, tokenizer, model = checkpoint.restore_run(workdir, step)
  objective = config.plain(
    c.data.objective if 'objective' in c.data else objectives.CAUSAL
  )
  if not bos:
    if objective['fn'] != objectives.CAUSAL['fn']:
      raise config.ConfigError(
        f'{workdir}: trained by {objective["fn"]}, which needs its bos: leave '
        '--no_bos out'
      )
    objective = {'fn': 'tools.lm_eval:bare'}
  room = length or c.model.get('length') or c.data.length
  mesh = sharding.make_mesh()
  with config.user_errors():
    score = scoring.make(
      context_lib.Context(model, tokenizer, mesh),
      batch_size=batch_size,
      length=room,
      objective=objective,
    )
  built = config.build(objective, tokenizer=tokenizer, length=room)
  params = checkpoint.restore_params(workdir, step)
  where = sharding.shardings(
    params, mesh=mesh, axes=model.axes, rules=c.sharding
  )
  params = jax.device_put(params, where)

  class Model(api.LM):
    """A run, asked by lm_eval."""

    def loglikelihood(self, requests):
      return [
        (-x.nats, x.greedy)
        for x in score(params, [request.args for request in requests])
      ]

    def loglikelihood_rolling(self, requests):
      pairs = [('', *request.args) for request in requests]
      if not all(vocabulary.gives_back(tokenizer, text) for _, text in pairs):
        raise config.ConfigError(
          f'{workdir}: its tokenizer loses some of these texts, so they have '
          'no bits per byte: leave tasks of loglikelihood_rolling out'
        )
      return [-x.nats for x in score(params, pairs)]

    def generate_until(self, requests):
      if built.prompt is None:
        raise config.ConfigError(
          f'{workdir}: trained by {objective["fn"]}, which goes on from no '
          'text: leave tasks that generate out'
        )
      run = engine.Run(tokenizer, model, built.prompt, params)
      return _generate(run, [x.args for x in requests], batch_size, room)

  return Model()


def bare(*, tokenizer: types.Tokenizer, length: int) -> objectives.Objective:
  """Makes `objectives.causal`, except that only empty prompts get a bos."""

  def prompt(texts):
    rows = [[*ids] or [tokenizer.bos] for ids in texts]
    return objectives.padded(rows, tokenizer.pad)

  causal = objectives.causal(tokenizer=tokenizer, length=length)
  return causal._replace(prompt=prompt)


def task(name: str, folder: str | Path) -> dict[str, Any]:
  """Gives lm_eval the config of a task, with the rows of its file.

  Raises:
    ValueError: the file is missing or damaged.
  """
  file, spec = TASKS[name]
  rows = record_files.json_lines(str(Path(folder) / file))
  data = importlib.import_module('datasets').Dataset.from_list(rows)
  return {
    'task': name,
    'test_split': 'test',
    'custom_dataset': lambda **_: {'test': data},
    **spec,
  }


def _lm_eval(module: str) -> Any:
  """Imports a module of lm_eval, which need not be installed."""
  try:
    return importlib.import_module(f'lm_eval.{module}')
  except ImportError as error:
    raise config.ConfigError(
      f'tools.lm_eval needs {error.name}: {errors.install("lmeval")}'
    ) from error


def _generate(
  run: engine.Run,
  requests: Sequence[tuple[str, Mapping[str, Any]]],
  batch_size: int,
  length: int,
) -> list[str]:
  """Continues texts with the likeliest token each time.

  A text that would be longer than `length` with its new tokens is cut from the
  left.

  Args:
    run: the model and its parameters.
    requests: texts, and lm_eval's settings for each.
    batch_size: texts at a time.
    length: the most positions.
  """
  most = engine.capacity(run, length)
  by_settings: dict[engine.Settings, list[int]] = {}
  for n, (_, how) in enumerate(requests):
    by_settings.setdefault(_settings(how, most), []).append(n)
  texts = [''] * len(requests)
  for settings, places in by_settings.items():
    for start in range(0, len(places), batch_size):
      part = places[start : start + batch_size]
      room = most - settings.length - 1  # and bos
      rows = [run.tokenizer.encode(requests[n][0]) for n in part]
      rows = [ids[max(len(ids) - room, 0) :] for ids in rows]
      for ready in engine.stream(run, rows, settings, capacity=most):
        for row, tokens, _ in ready:
          texts[part[row]] += ''.join(token.text for token in tokens)
  return texts


def _settings(how: Mapping[str, Any], most: int) -> engine.Settings:
  """Reads what lm_eval calls generation_kwargs."""
  until = how.get('until') or ()
  until = (until,) if isinstance(until, str) else until
  new = how.get('max_gen_toks', 256)  # the default of lm_eval
  if how.get('do_sample') and how.get('temperature', 1):
    raise config.ConfigError('do_sample: texts are the likeliest: leave it out')
  if not 0 < new < most:
    raise config.ConfigError(
      f'max_gen_toks={new} must be 1 to {most - 1}: the model has room for '
      f'{most}'
    )
  return engine.Settings(new, 0.0, stop=tuple(x for x in until if x))


def main(argv: Sequence[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.lm_eval',
    description=__doc__,
    epilog=config.exit_code_help('tools.lm_eval'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  config.trust_flag(parser)
  add('--workdir', required=True)
  add('--tasks', required=True, help=f'{", ".join(TASKS)}, or files .yaml')
  add('--data', help='folder of the files of tasks')
  add('--step', type=int, help='of the checkpoint; the newest if left out')
  add('--limit', type=int, help='the first so many items of each task')
  add('--batch_size', type=int, default=16)
  add('--length', type=int, help='positions that the model reads')
  add('--no_bos', action='store_true', help='as lm_eval asks transformers')
  add('--output', type=Path, metavar='FILE', help='all of it as JSON')
  flags = parser.parse_args(argv)
  names = flags.tasks.split(',')
  for name in names:
    if name not in TASKS and not Path(name).is_file():
      known = config.did_you_mean(name, TASKS)
      raise config.ConfigError(f'--tasks: {name}: no such task or file{known}')
    if name in TASKS and flags.data is None:
      parser.error(f'--data: give the folder that has {TASKS[name][0]}')
  # Set before lm_eval is imported, so that it never asks the network: a file
  # that is not on this machine is an error at once.
  os.environ['HF_HUB_OFFLINE'] = os.environ['HF_DATASETS_OFFLINE'] = '1'
  memory.prepare()
  compilation_cache.prepare()
  harness, tasks = _lm_eval('evaluator'), _lm_eval('tasks')
  logging.getLogger('lm_eval').setLevel(logging.ERROR)
  with config.user_errors():
    chosen = [task(x, flags.data) if x in TASKS else x for x in names]
    model = make(
      flags.workdir,
      step=flags.step,
      batch_size=flags.batch_size,
      length=flags.length,
      bos=not flags.no_bos,
    )
  result = harness.simple_evaluate(
    model=model,
    tasks=chosen,
    task_manager=tasks.TaskManager(include_defaults=False),
    limit=flags.limit,
    bootstrap_iters=0,  # its processes fork, which jax does not survive
  )
  rows = [
    {'task': name, 'metric': key.partition(',')[0], 'value': value}
    for name, values in result['results'].items()
    for key, value in values.items()
    if isinstance(value, float) and '_stderr' not in key
  ]
  print(metrics_log.table(rows, ['task', 'metric', 'value']))
  if flags.output is not None:
    kept = {key: result[key] for key in ('results', 'n-samples', 'samples')}
    flags.output.write_text(json.dumps(kept, default=str) + '\n')


if __name__ == '__main__':
  config.main(main)
