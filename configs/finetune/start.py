"""What configs of fine-tuning share."""

from pathlib import Path
from typing import Any

from configs import base
from lm import config


def classifier(head: dict[str, Any], run: str | None) -> Any:
  """Returns a config of a head, without its data and evaluators.

  Args:
    head: spec of the head, without its body.
    run: folder of the run whose model is tuned, and whose tokenizer is taken;
      None: the encoder of configs/base.py from nothing, on bytes.
  """
  c = base.get_config()
  c.batch_size = 32
  if run is None:
    c.tokenizer = {'fn': 'lm.data.tokenizer:bytes_', 'reserved': 0}
    c.model = head | {'body': base.encoder() | {'norm_order': 'pre'}}
    return c
  theirs = config.from_json(Path(run, 'config.json').read_text())
  is_head = 'body' in theirs.model
  body = theirs.model.body if is_head else theirs.model
  c.tokenizer = theirs.tokenizer
  c.model = head | {'body': body}
  if 'pool' in head and body.fn == 'lm.models.decoder:make':
    c.model['pool'] = 'last'  # alone it has seen the whole text
  c.init_from = run
  c.init_paths = ('body',) if is_head else ('=body',)
  c.optim.peak = 1e-4
  c.optim.final = 0.0
  c.optim.decay = 0.01
  return c


def judge(c: Any, evaluator: str, read: dict[str, Any], **how: Any) -> None:
  """Adds an evaluator `test` of the records that a reader reads."""
  c.evals = {
    'test': {
      'fn': f'lm.evals.labels:{evaluator}',
      'records': read,
      'form': c.data.form,
      'batch_size': 64,
      'length': c.data.length,
      **how,
    }
  }
