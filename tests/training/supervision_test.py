"""The lines of a supervisor stand where they belong in the log."""

from lm import train
from lm.reporting import metrics_log
from lm.runtime import stragglers
from tests import programs


def test_lines_of_a_straggler_stay_in_the_order_of_steps(
  data, tmp_path, one_device, monkeypatch, capfd
):
  """A measurement comes later than the step that it is about."""
  news = {
    9: stragglers.Straggler(0, 5, 2, 0.3, 0.5),  # four steps late
    15: stragglers.Straggler(0, 14, 2, 0.3, 0.5),
    17: stragglers.Straggler(None, 16, 16, 0.0, 0.0),
  }
  monkeypatch.setattr(
    stragglers.Stragglers, 'add', lambda self, step, own, whole: news.get(step)
  )
  c = programs.make(data, steps=18, eval_every=12)
  train.train(c, tmp_path / 'run')
  lines = metrics_log.read(tmp_path / 'run' / 'metrics.jsonl')
  steps = [x['step'] for x in lines]
  assert steps == sorted(steps)
  slow = [x for x in lines if 'straggler/process' in x]
  # With the updates that were done when it was told.
  assert [(x['step'], x['straggler/since']) for x in slow] == [(8, 2), (14, 2)]
  said = [x for x in capfd.readouterr().err.splitlines() if 'others wait' in x]
  assert len(said) == 2, 'it is named once, and that it has recovered'
  assert said[0].startswith('step 5: ') and 'since step 2: ' in said[0]
  assert said[1] == 'step 16: no process makes others wait now'
