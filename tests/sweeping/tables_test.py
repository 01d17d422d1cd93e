"""The tables of runs of this command and of earlier ones."""

from pathlib import Path

from lm import config
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


def test_the_page_shows_the_runs(tmp_path: Path):
  base, folder = trials.load_base(TINY), folder_lib.Folder(tmp_path)
  chosen, _ = trials.make(base, [{'seed': 0}, {'seed': 1}])
  runs = [schedule.Run(trial, folder) for trial in chosen]
  rows = tables.rows(base, folder, runs, folder.store(base, chosen, []))
  # Before the first run has begun there is nothing to show.
  assert tables.write_page(folder, rows, 'loss_nats') is None
  for n, trial in enumerate(chosen):
    finish(folder, trial.name, 2.0 + n)
    text = config.to_json(trial.config)
    (folder.run(trial.name) / 'config.json').write_text(text)
  page = tables.write_page(folder, rows, 'loss_nats')
  assert page == tmp_path / 'page.html'
  text = (tmp_path / 'page.html').read_text(encoding='utf-8')
  assert all(f'runs/{trial.name}' in text for trial in chosen)


def test_the_plot_has_only_points_that_are_done(tmp_path: Path):
  """A failure means that it shows metrics of earlier steps as results."""
  folder = folder_lib.Folder(tmp_path)
  row = {'optim.peak': 0.1, 'state': 'failed', 'step': 3, 'loss_nats': 9.0}
  found = [{**row, 'name': 'a', 'workdir': '', 'error': 'it broke'}]
  tables.write(folder, found, ['optim.peak'], 'loss_nats', higher=False)
  assert not (tmp_path / 'plot.png').exists()
  found[0]['state'] = 'done'
  tables.write(folder, found, ['optim.peak'], 'loss_nats', higher=False)
  assert (tmp_path / 'plot.png').exists()
