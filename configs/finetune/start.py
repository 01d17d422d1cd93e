"""Parts that the configs of fine-tuning share."""

from collections.abc import Collection
import copy
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from configs import base
from lm import config


def is_decoder(model: Any) -> bool:
  """Tells whether a model, or the body of heads and of LoRA, is a decoder."""
  return config.innermost(model)[1].fn == 'lm.models.decoder:make'


def words(argument: str, sets: Collection[str]) -> tuple[str, str, list[str]]:
  """Reads the argument of a config: 'FOLDER,SET[,RUN[,lora]]'.

  Raises:
    ValueError: the argument has another form, or the set is unknown.
  """
  folder, name, *run = [*argument.split(','), '']
  if name not in sets or len(run) > 3:
    raise ValueError(
      f'give FOLDER,SET,RUN or FOLDER,SET, with one of {", ".join(sets)}'
    )
  return folder, name, run[:-1]


def tuned(head: dict[str, Any] | None, run: str = '', method: str = '') -> Any:
  """Returns a config of a model to tune, without its data and evaluators.

  Args:
    head: spec of the head, without its body; None: a decoder, which writes.
    run: folder of the run whose model and tokenizer are used; '': the encoder
      or decoder of configs/base.py with random parameters, on bytes.
    method: '' trains the whole model; 'lora' trains the head and low-rank
      changes of q and v.

  Raises:
    ValueError: the method is unknown, or there is no head and the run is not of
      a decoder.
  """
  if method not in ('', 'lora'):
    raise ValueError(f"the fourth word is {method!r}: give 'lora' or none")
  c = base.get_config()
  c.batch_size = 32
  if not run:
    c.tokenizer = {'fn': 'lm.data.tokenizers.utf8_bytes:make', 'reserved': 0}
    if head is not None:
      c.model = head | {'body': base.encoder(order='pre')}
    return c
  theirs = config.from_json(Path(run, 'config.json').read_text())
  is_head = 'body' in theirs.model
  body = theirs.model.body if is_head else theirs.model
  c.tokenizer = theirs.tokenizer
  if head is None and not is_decoder(body):
    raise ValueError(f'{run}: {body.fn} is no decoder: it cannot write')
  c.model = body if head is None else head | {'body': body}
  if head is not None and is_decoder(body):
    # Only the last word of a decoder has seen the whole text. A tag depends on
    # the words that follow, too.
    last = {'pool': 'last', 'bias': False}
    c.model.update(last if 'pool' in head else {'bidirectional': True})
  c.init_from = run
  ours = ['body'] * ((method == 'lora') + (head is not None))
  c.init_paths = (f'{"body" if is_head else ""}={"/".join(ours)}',)
  c.optim.peak = 1e-4
  if method == 'lora':
    c.model = {
      'fn': 'lm.models.lora:make',
      'rank': 8,
      'alpha': 16.0,
      'paths': r'attention/[qv]$',
      'body': c.model,
    }
    c.optim.peak = 1e-3
  c.optim.final = 0.0
  c.optim.decay = 0.01
  return c


def task(
  c: Any,
  form: dict[str, Any],
  train: dict[str, Any],
  test: dict[str, Any],
  evaluators: dict[str, dict[str, Any]],
  *,
  length: int,
  folds: int = 1,
) -> None:
  """Adds the data, and evaluators of the same form.

  Args:
    c: a config from `tuned`.
    form: its spec, see `lm.data.finetuning.tasks.make`.
    train: spec of a reader.
    test: spec of a reader; the same one for a file that has no split.
    evaluators: by name, their `fn` in lm.evals, such as
      'classification:classes', and settings of their own.
    length: tokens a row.
    folds: number of parts of that file; the first one is held out.
  """
  # One value in both places, so that --config.data.held_out changes both.
  held_out = config_dict.FieldReference(0 if folds > 1 else None, int)
  c.data = {
    'fn': 'lm.data.finetuning.tasks:make',
    'records': copy.deepcopy(train),
    'form': copy.deepcopy(form),
    'length': length,
    'pack': False,
    'folds': folds,
    'held_out': held_out,
  }
  c.evals = {
    name: {
      # Copies: loading refuses what stands in a config at two places.
      'records': copy.deepcopy(test),
      'form': copy.deepcopy(form),
      'batch_size': 64,
      'length': length,
      'folds': folds,
      'fold': held_out,
      **how,
      'fn': f'lm.evals.{how["fn"]}',
    }
    for name, how in evaluators.items()
  }
