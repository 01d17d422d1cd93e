"""The tables of runs of this command and of earlier ones."""

from pathlib import Path

from lm.checkpoint import manifest
from lm.reporting import metrics_log
from lm.sweeping import folder as folder_lib
from lm.sweeping import schedule, tables, trials

TINY = 'configs/gpt/tiny.py'


def finish(folder: folder_lib.Folder, name: str, loss: float) -> None:
  """Makes a run look as if it had taken all its steps."""
  run = folder.run(name)
  saved = manifest.directory(run, 500) / manifest.NAME
  saved.parent.mkdir(parents=True)
  saved.touch()
  metrics_log.append(run / 'metrics.jsonl', {'step': 500, 'loss_nats': loss})
  folder.note(name, 'done')


def test_runs_of_earlier_commands_stand_beside_those_of_this_one(
  tmp_path: Path,
):
  """A failure means that values such as tuples change as they are stored."""
  base, folder = trials.load_base(TINY), folder_lib.Folder(tmp_path)
  key, twice = 'model.pattern', ('main', 'main')
  points = [{key: twice, 'seed': 0}, {key: ('main',), 'seed': 0}]
  first, _ = trials.make(base, points)
  folder.store(base, first, [])
  for n, trial in enumerate(first):
    finish(folder, trial.name, 2.0 + n)
  second, _ = trials.make(base, [{key: twice, 'seed': 1}])
  finish(folder, second[0].name, 3.0)
  outcomes = folder.outcomes()
  runs = [schedule.Run(x, folder, outcomes[x.name]) for x in second]
  rows = tables.rows(base, folder, runs, folder.store(base, second, []))
  assert len(rows) == 3
  table = tables.write(folder, rows, [key, 'seed'], 'loss_nats', higher=False)
  assert [(row[key], row['runs'], row['loss_nats']) for row in table] == [
    (twice, 2, 2.5),
    (('main',), 1, 3.0),
  ]
  assert (tmp_path / 'plot.png').stat().st_size
