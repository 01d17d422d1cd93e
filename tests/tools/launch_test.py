"""Launchers, against stand-ins that record commands and really run scripts.

The stand-in of gcloud gives each worker a folder as its home and runs there
what came through ssh, so that quoting, locks, logs and exit codes are those of
a real shell. lm.train is a stub that notes its arguments and ends as planned.
"""

import contextlib
import json
import os
from pathlib import Path
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from lm import config, errors
from lm.runtime import processes
from tests import programs
from tools.launch import (
  arguments,
  commands,
  gke,
  slices,
  slurm,
  tpu_machine,
  tpu_vm,
)

ROOT = Path(__file__).resolve().parents[2]
FAKE = """#!{python} -IS
import json, os, re, shutil, subprocess, sys, time
root = {root!r}
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
line = ' '.join(words)
stdin = sys.stdin.read() if '--filename=-' in words else ''
with open(root + '/calls', 'a') as f:
  f.write(json.dumps([words, stdin]) + '\\n')
with open(root + '/replies') as f:
  replies = json.load(f)
answer = {{}}
for pattern, answers in replies:
  if re.search(pattern, line):
    answer = answers.pop(0) if len(answers) > 1 else answers[0]
    break
with open(root + '/replies.part', 'w') as f:
  json.dump(replies, f)
os.replace(root + '/replies.part', root + '/replies')
sys.stdout.write(answer.get('out', ''))
sys.stderr.write(answer.get('err', ''))
sys.stdout.flush()
time.sleep(answer.get('sleep', 0))
code = answer.get('code', 0)
flags = dict(w[2:].split('=', 1) for w in words if w[:2] == '--' and '=' in w)
homes = sorted(x for x in os.listdir(root) if re.fullmatch('w[0-9]', x))
if flags.get('worker', 'all') != 'all':
  homes = ['w' + flags['worker']]
if 'code' in answer:
  pass
elif ' ssh ' in line:
  for home in homes:
    env = dict(os.environ, HOME=root + '/' + home)
    script = ['bash', '-c', flags['command']]
    code = code or subprocess.call(script, env=env, cwd=env['HOME'])
elif ' scp ' in line:
  for home in homes:
    shutil.copy(words[5], root + '/' + home + '/' + words[6].split(':')[1])
elif ' queued-resources delete ' in line:
  for home in homes:  # what comes next is a new machine
    folder = root + '/' + home + '/lm-launch/'
    if os.path.exists(folder + 'run/pid'):
      try:
        os.killpg(os.getpgid(int(open(folder + 'run/pid').read())), 9)
      except ProcessLookupError:
        pass
    shutil.rmtree(folder + 'src', ignore_errors=True)
    shutil.rmtree(folder + 'run', ignore_errors=True)
elif 'srun' in words:
  code = subprocess.call(words[words.index('srun') + 3:])
sys.exit(code)
"""
UV = """#!/bin/bash
if [ "$1" = venv ]; then
  mkdir -p "${{@: -1}}/bin"
  cat > "${{@: -1}}/bin/python" <<'END'
#!/bin/bash
if [ "$2" = tools.launch.stage ]; then
  PYTHONPATH={root} exec {python} -P "$@"
fi
exec {python} -S "$@"
END
  chmod +x "${{@: -1}}/bin/python"
else
  echo "$@" >> "$HOME/installed"
fi
"""
TRAIN = """
import json, os, signal, sys, time
home = os.environ['HOME']
with open(home + '.seen', 'a') as f:
  f.write(json.dumps([sys.argv[1:], os.environ.get('LM_DISTRIBUTED')]) + '\\n')
with open(home + '.secret', 'a') as f:
  f.write(os.environ.get('LM_SECRET', '') + '\\n')
plan = open(home + '.plan').read().split()
with open(home + '.plan', 'w') as f:
  f.write(' '.join(plan[1:] or plan))
signal.signal(signal.SIGTERM, lambda *unused: sys.exit(143))
print('training: ' + plan[0], flush=True)
if plan[0] == 'wait':
  time.sleep(60)
if plan[0] == 'killed':
  os.kill(os.getpid(), 9)
sys.exit(int(plan[0]))
"""
CONFIG = """
from ml_collections import config_dict
def get_config():
  return config_dict.ConfigDict(
    dict(seed=0, steps=1, batch_size=1, save_every=1, text='')
  )
"""
WORDS = ['--config=configs/a.py', '--workdir=/data/a']
# Each of these breaks a command line that was not quoted with care.
NASTY = '--config.text=it\'s "2  $HOME `id`; \\ && x" * é %h'
PLACE = ['--name=a', '--type=v5litepod-8', '--zone=us-east5-a']
QUICK = '--poll_seconds=0.01'


class Cloud:
  """The stand-ins and what they have seen."""

  def __init__(self, root: Path):
    self.root = root
    (root / 'bin').mkdir()
    fake = FAKE.format(python=sys.executable, root=str(root))
    for name in ('gcloud', 'kubectl', 'sbatch', 'squeue', 'srun', 'scontrol'):
      self._program(root / 'bin' / name, fake)
    # Started often, and the machine's own may be slow to start.
    python = f'#!/bin/bash\nexec {sys.executable} -IS "$@"\n'
    self._program(root / 'bin' / 'python3', python)
    self.reply('never matched', {})

  def _program(self, path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)

  def hosts(self, count: int, *plan: object) -> None:
    """Makes workers, and says how lm.train ends there, each time."""
    for i in range(count):
      uv = self.root / f'w{i}' / 'lm-launch' / 'uv' / 'bin' / 'uv'
      self._program(uv, UV.format(python=sys.executable, root=ROOT))
      self.plan(i, *plan)

  def plan(self, worker: int, *plan: object) -> None:
    (self.root / f'w{worker}.plan').write_text(' '.join(map(str, plan)))

  def reply(self, pattern: str, *answers: dict) -> None:
    """Answers commands that match, in turn; the last answer stays."""
    path = self.root / 'replies'
    known = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([[pattern, answers], *known]))

  def states(self, *states: str) -> None:
    """Answers `queued-resources describe`, in turn."""
    text = [json.dumps({'state': {'state': state}}) for state in states]
    self.reply(' describe ', *({'out': x} for x in text))

  def calls(self) -> list[list[str]]:
    path = self.root / 'calls'
    if not path.exists():
      return []
    return [json.loads(x)[0] for x in path.read_text().splitlines()]

  def verbs(self) -> list[str]:
    """Names each command by its verb, and an ssh by what the worker does."""
    found = []
    for words in self.calls():
      verb = words[4]
      if verb == 'ssh':
        script = next(x for x in words if x.startswith('--command='))
        after = re.search(r'(?:worker.py|launch.stage) (\S+)', script)
        verb = after[1] if after else 'unpack'
      found.append(verb)
    return found

  def stdin(self) -> str:
    """Returns what the first command read."""
    return json.loads((self.root / 'calls').read_text().splitlines()[0])[1]

  def seen(self, worker: int) -> list:
    """The arguments and LM_DISTRIBUTED of each start of lm.train."""
    lines = (self.root / f'w{worker}.seen').read_text().splitlines()
    return [json.loads(x) for x in lines]

  def run(self, worker: int) -> Path:
    """The folder of the run on a worker."""
    return self.root / f'w{worker}' / 'lm-launch' / 'run'

  def kill(self) -> None:
    """Ends what is still alive on the workers."""
    for path in self.root.glob('w?/lm-launch/run/pid'):
      with contextlib.suppress(ProcessLookupError):
        os.killpg(os.getpgid(int(path.read_text())), signal.SIGKILL)


@pytest.fixture(scope='module')
def repository(tmp_path_factory) -> Path:
  """A committed tree: stub, config, and our own launchers."""
  root = tmp_path_factory.mktemp('repository')
  shutil.copytree(
    ROOT / 'tools/launch',
    root / 'tools/launch',
    ignore=shutil.ignore_patterns('__pycache__'),
  )
  worker = root / 'tools/launch/worker.py'
  text = worker.read_text()
  assert text.count("'/tmp/libtpu_lockfile'") == 1
  worker.write_text(
    text.replace("'/tmp/libtpu_lockfile'", "os.environ['HOME'] + '.tpu'")
  )
  (root / 'lm').mkdir()
  (root / 'lm/__init__.py').touch()
  (root / 'lm/train.py').write_text(TRAIN)
  (root / 'configs').mkdir()
  (root / 'configs/a.py').write_text(CONFIG)
  for words in (
    ['init', '--quiet'],
    ['add', '.'],
    ['-c', 'user.name=a', '-c', 'user.email=a', 'commit', '-q', '-m', 'a'],
  ):
    subprocess.run(['git', *words], cwd=root, check=True)
  return root


@pytest.fixture
def cloud(repository, tmp_path, monkeypatch):
  made = Cloud(tmp_path)
  monkeypatch.setenv('PATH', f'{tmp_path}/bin:{os.environ["PATH"]}')
  monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path / 'state'))
  monkeypatch.chdir(repository)
  yield made
  made.kill()


def refusal(
  program, argv: list[str], kind: type[Exception] = config.ConfigError
) -> str:
  """The one line that a program ends with, when it refuses."""
  with pytest.raises(kind) as caught:
    program.main(argv)
  text = str(caught.value)
  assert len(text) <= 200 and '\n' not in text
  return text


# Dry runs.


@pytest.mark.process
def test_a_dry_run_of_a_tpu_vm_prints_every_command(cloud, capsys):
  argv = ['--name=a', '--type=v5p-512', '--zone=us-east5-a', '--spot']
  argv += ['--project=my-project', '--dry_run', 'all', '--', *WORDS]
  assert tpu_vm.main([*argv, "--config.text=it's"]) == 0
  place = '--zone=us-east5-a --project=my-project --quiet'
  flags = '--ssh-flag=-oServerAliveInterval=30 '
  flags += f'--ssh-flag=-oServerAliveCountMax=4 {place}'
  ssh = 'gcloud compute tpus tpu-vm ssh a'
  worker = 'python3 lm-launch/src/tools/launch/worker.py'
  start = f'{worker} start --token TOKEN --env LM_DISTRIBUTED=auto '
  start += f'--env LM_LISTEN=private -- {" ".join(WORDS)}'
  start += " '--config.text=it'\"'\"'s'"
  create = f"""\
gcloud compute tpus queued-resources create a --node-id=a \
--accelerator-type=v5p-512 --runtime-version=v2-alpha-tpuv5 \
--valid-until-duration=86400s --spot {place}
# until it is ACTIVE, at most 24 h
gcloud compute tpus queued-resources describe a --format=json {place}
mkdir -p /tmp
cat > /tmp/secret <<'END'
SECRET
END
git archive --format=tar.gz --output=/tmp/lm-launch.tar.gz \
--add-file=/tmp/secret HEAD
gcloud compute tpus tpu-vm scp /tmp/lm-launch.tar.gz a: --worker=all {place}
{ssh} --worker=all '--command=chmod 600 lm-launch.tar.gz \
&& rm -rf lm-launch/src.part \
&& mkdir -p lm-launch/src.part \
&& tar -xzf lm-launch.tar.gz -C lm-launch/src.part \
&& python3 lm-launch/src.part/tools/launch/worker.py install tpu' {flags}
{ssh} --worker=all {shlex.quote(f'--command={start}')} {flags}
"""
  assert capsys.readouterr().out == (
    f"""{create}\
{ssh} --worker=all '--command={worker} status' {flags}
# until the run ends
{ssh} --worker=0 '--command={worker} follow --start 0' {flags}
# when it is preempted, at most 100 times:
gcloud compute tpus queued-resources describe a --format=json {place}
gcloud compute tpus queued-resources delete a --force {place}
{create}"""
  )
  assert cloud.calls() == []
  assert not (cloud.root / 'state').exists()


@pytest.mark.process
def test_a_dry_run_of_slurm_prints_script_and_commands(
  cloud, repository, capsys
):
  argv = ['--name=a', '--nodes=4', '--gpus=8', '--cpus=96', '--time=24:00:00']
  argv += ['--partition=big', '--folder=/shared/x', '--python=/p/python']
  argv += ['--sbatch=--qos=high', '--sbatch=--exclude=n1,n2']
  argv += ['--setup=module load cuda', '--follow', '--dry_run', '--', *WORDS]
  assert slurm.main([*argv, '--config.text=$HOME']) == 0
  assert capsys.readouterr().out == (
    f"""\
mkdir -p /shared/x
cat > /shared/x/a.sbatch <<'END'
#!/bin/bash
#SBATCH --job-name=a
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --partition=big
#SBATCH --output=/shared/x/a-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
#SBATCH --dependency=singleton
#SBATCH --requeue
#SBATCH --qos=high
#SBATCH --exclude=n1,n2
cd {repository} || exit 2
export LM_DISTRIBUTED=auto
export LM_LISTEN=private
export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7
export LM_SECRET="$(od -An -N16 -tx1 /dev/urandom | tr -d ' \\n')"
export SRUN_CPUS_PER_TASK=96
module load cuda
rm -f /shared/x/a-"$SLURM_JOB_ID".code
srun --kill-on-bad-exit=0 --wait=120 /p/python -u -m lm.train \
--config=configs/a.py --workdir=/data/a '--config.text=$HOME'
code=$?
echo "$code" > /shared/x/a-"$SLURM_JOB_ID".code
# stopped by SIGTERM, after saving; or ended because it hung
if {{ [ "$code" -eq 143 ] || [ "$code" -eq 10 ]; }} && \
[ "${{SLURM_RESTART_COUNT:-0}}" -lt 100 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
END
sbatch --parsable /shared/x/a.sbatch
# until it is empty
squeue --noheader --format=%T --jobs=JOB
"""
  )
  assert cloud.calls() == []


@pytest.mark.process
def test_a_dry_run_of_gke_prints_manifest_and_commands(cloud, capsys):
  argv = ['--name=a', '--type=v5e-8', '--image=r/lm:1', '--namespace=me']
  assert gke.main([*argv, '--dry_run', 'all', '--', *WORDS]) == 0
  first, _, rest = capsys.readouterr().out.partition('\n')
  assert first == "kubectl apply --filename=- --namespace=me <<'END'"
  text, _, after = rest.partition('\nEND\n')
  assert json.loads(text)['metadata']['name'] == 'a'
  selector = (
    'jobset.sigs.k8s.io/jobset-name=a,jobset.sigs.k8s.io/job-index=0,'
    'batch.kubernetes.io/job-completion-index=0'
  )
  assert after == (
    f"""\
# until all slices are ready
kubectl get jobset a --output=json --namespace=me
# again when pods were restarted, until the run ends
kubectl logs --follow --selector={selector} --tail=1000 --namespace=me
kubectl get jobset a --output=json --namespace=me
"""
  )
  assert gke.main([*argv, '--dry_run', 'delete']) == 0
  assert capsys.readouterr().out == (
    'kubectl delete jobset,secret a --ignore-not-found --wait --namespace=me\n'
  )
  assert cloud.calls() == []


@pytest.mark.process
def test_what_a_dry_run_prints_can_be_pasted(cloud, capsys, monkeypatch):
  """The shell hands the stand-ins what a real run hands them."""
  argv = [*PLACE, 'run', '--', *WORDS, NASTY]
  cloud.reply(' ssh ', {'code': 0})
  monkeypatch.setattr(secrets, 'token_hex', lambda size: 'TOKEN')
  tpu_vm.main(argv)
  (real,) = cloud.calls()
  tpu_vm.main(['--dry_run', *argv])
  text = capsys.readouterr().out
  assert text.count('\n') == 1
  subprocess.run(['bash', '-c', text], check=True)
  assert cloud.calls() == [real, real]


# What TPUs are called.


@pytest.mark.parametrize(
  'name, type_, chips, hosts, topology, target',
  [
    ('v5litepod-1', 'v5litepod-1', 1, 1, '1x1', 'v5e:1x1'),
    ('v5e-8', 'v5litepod-8', 8, 1, '2x4', 'v5e:2x4'),
    ('v5e:2x4', 'v5litepod-8', 8, 1, '2x4', 'v5e:2x4'),
    ('v5p:4x8x8', 'v5p-512', 256, 64, '4x8x8', 'v5p:4x8x8'),
    ('v5litepod-16', 'v5litepod-16', 16, 4, '4x4', 'v5e:4x4'),
    ('v6e-256', 'v6e-256', 256, 64, '16x16', 'v6e:16x16'),
    ('v4-8', 'v4-8', 4, 1, '2x2x1', 'v4:2x2x1'),
    ('v5p-512', 'v5p-512', 256, 64, '4x8x8', 'v5p:4x8x8'),
    ('v5p-12288', 'v5p-12288', 6144, 1536, '16x16x24', 'v5p:16x16x24'),
  ],
)
def test_slices_have_their_chips_hosts_and_shape(
  name, type_, chips, hosts, topology, target
):
  found = slices.find(name)
  assert found[:5] == (type_, chips, hosts, topology, target)


def test_an_unknown_slice_is_one_line():
  with pytest.raises(config.ConfigError) as caught:
    slices.find('v5p-500')
  assert str(caught.value) == (
    '--type=v5p-500: no such TPU slice; did you mean v5p-512?'
  )
  with pytest.raises(config.ConfigError, match='no such TPU slice; known: v4,'):
    slices.find('h100-8')


# A TPU VM.


@pytest.mark.process
def test_a_run_from_nothing_to_its_exit_code(cloud, capfd):
  """Two hosts; the service is busy at first, and words arrive as they are."""
  cloud.hosts(2, 0)
  busy = {'code': 1, 'err': 'ERROR: (gcloud.x) UNAVAILABLE: busy\n'}
  cloud.reply(' create ', busy, busy, {})
  cloud.states('WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE')
  argv = ['--name=a', '--type=v5p-16', '--zone=us-east5-a', QUICK, 'all']
  words = [*WORDS, NASTY]
  assert tpu_vm.main([*argv, '--delete_when_done', '--', *words]) == 0
  for i in range(2):
    assert cloud.seen(i) == [[words, 'auto']]
    assert (cloud.root / f'w{i}/installed').read_text().split() == [
      'pip',
      'install',
      '--quiet',
      f'--python={cloud.root}/w{i}/lm-launch/venv/bin/python',
      '--editable',
      f'{cloud.root}/w{i}/lm-launch/src[tpu]',
    ]
  secrets_ = [(cloud.root / f'w{i}.secret').read_text() for i in range(2)]
  assert secrets_[0] == secrets_[1] and len(secrets_[0].strip()) == 32
  assert secrets_[0].strip() not in (cloud.root / 'calls').read_text()
  kept = cloud.root / 'w0/lm-launch/secret'
  assert kept.stat().st_mode & 0o77 == 0
  out, err = capfd.readouterr()
  assert out.splitlines()[1:] == ['training: 0']
  assert 'gcloud compute tpus queued-resources create a: UNAVAILABLE' in err
  told = [x for x in err.splitlines() if x.startswith('a: ')]
  assert told[0].startswith('a: commit ')
  assert told[1:] == [
    'a: WAITING_FOR_RESOURCES',
    'a: PROVISIONING',
    'a: ACTIVE',
  ]
  begin = ['create'] * 3 + ['describe'] * 3 + ['scp', 'install', 'start']
  assert cloud.verbs()[: len(begin)] == begin
  assert cloud.verbs()[-1] == 'delete'


@pytest.mark.process
def test_one_host_is_not_distributed_and_may_keep_its_workdir(cloud):
  cloud.hosts(1, 0)
  words = ['--config', 'configs/a.py', '--workdir', 'runs/a']
  setup = '--setup=echo "$HOME" > mounted'
  assert tpu_vm.main([*PLACE, QUICK, setup, 'install']) == 0
  assert (cloud.root / 'w0/mounted').read_text() == f'{cloud.root}/w0\n'
  assert tpu_vm.main([*PLACE, '--env=A=b c', 'run', '--', *words]) == 0
  assert tpu_vm.main([*PLACE, QUICK, 'logs']) == 0
  assert cloud.seen(0) == [[words, None]]


@pytest.mark.process
@pytest.mark.parametrize('code', [1, 2])
def test_the_exit_code_comes_back(cloud, code, capfd):
  cloud.hosts(1, code)
  cloud.states('ACTIVE')
  argv = [*PLACE, QUICK, 'all', '--', *WORDS]
  assert tpu_vm.main(argv) == code
  assert f'ended {code}: training: {code}' in capfd.readouterr().err
  assert cloud.verbs().count('start') == 1
  assert 'delete' not in cloud.verbs()


def test_the_variables_are_those_that_training_reads():
  names = [x.partition('=')[0] for x in arguments.DISTRIBUTED]
  assert names == [processes.VARIABLE, processes.LISTEN]
  assert processes.SECRET == arguments.SECRET


def test_the_code_of_the_process_that_knows_why_is_taken():
  assert commands.outcome([0, 0]) == 0
  assert commands.outcome([1, 5, 134]) == 5
  assert commands.outcome([134, 1, 0]) == 134
  assert commands.outcome([7, 1, 7]) == 1
  assert commands.outcome([0, 7]) == 7
  assert commands.outcome([]) == 0


@pytest.mark.process
def test_a_preempted_run_goes_on_on_a_new_slice(cloud, capfd):
  cloud.hosts(1, 'wait', 0)
  cloud.states('ACTIVE', 'SUSPENDING', 'SUSPENDED', 'SUSPENDED', 'ACTIVE')
  gone = {'code': 255, 'err': 'Connection to 1.2.3.4 closed by remote host.\n'}
  cloud.reply(' follow ', gone, {})
  cloud.reply(' status', {}, {'code': 1, 'err': 'ERROR: state PREEMPTED\n'}, {})
  argv = [*PLACE, '--spot', QUICK, 'all', '--', *WORDS]
  assert tpu_vm.main(argv) == 0
  assert cloud.seen(0) == [[WORDS, None]] * 2
  looks = ('describe', 'follow', 'status')
  assert [x for x in cloud.verbs() if x not in looks] == [
    *('create', 'scp', 'install', 'start'),
    *('delete', 'create', 'scp', 'install', 'start'),
  ]
  assert cloud.verbs().count('describe') == 5
  assert 'start 2 of at most 101' in capfd.readouterr().err


@pytest.mark.process
def test_a_process_that_is_killed_is_started_again_in_place(cloud, capfd):
  """So is one that got a SIGTERM that nobody here asked for."""
  cloud.hosts(1, 'killed', 143, 0)
  cloud.states('ACTIVE')
  argv = [*PLACE, QUICK, 'all', '--', *WORDS]
  assert tpu_vm.main(argv) == 0
  assert len(cloud.seen(0)) == 3
  assert not {'delete', 'wait'} & set(cloud.verbs())
  assert 'ended 137: training: killed' in capfd.readouterr().err


@pytest.mark.process
def test_starting_again_has_a_limit(cloud):
  cloud.hosts(1, 'killed')
  cloud.states('ACTIVE')
  argv = [*PLACE, QUICK, '--restarts=1', 'all', '--', *WORDS]
  assert refusal(tpu_vm, argv, commands.Unreachable) == (
    'a: started 2 times and not done: see its log; resume goes on'
  )
  assert len(cloud.seen(0)) == 2


@pytest.mark.process
def test_workers_that_go_on_without_the_first_are_stopped(cloud, monkeypatch):
  monkeypatch.setattr(tpu_machine, '_LATE', 1)
  cloud.hosts(2, 1)
  cloud.plan(1, 'wait')
  argv = ['--name=a', '--type=v5p-16', '--zone=us-east5-a', QUICK]
  tpu_vm.main([*argv, 'install'])
  tpu_vm.main([*argv, 'run', '--', *WORDS])
  assert tpu_vm.main([*argv, 'logs']) == 143
  assert cloud.verbs().count('stop') == 1
  assert not (cloud.run(1) / 'stopped').exists()


@pytest.mark.process
def test_a_start_that_is_tried_again_is_the_same_start(cloud):
  cloud.hosts(1, 'wait')
  tpu_vm.main([*PLACE, 'install'])
  tpu_vm.main([*PLACE, 'run', '--', *WORDS])
  words = cloud.calls()[-1]
  done = subprocess.run(words, capture_output=True, text=True)
  assert done.returncode == 0 and 'started already, pid ' in done.stdout
  assert len(cloud.seen(0)) == 1


@pytest.mark.process
def test_a_run_that_was_stopped_is_not_started_again(cloud, capfd):
  cloud.hosts(1, 'wait')
  cloud.states('ACTIVE')
  tpu_vm.main([*PLACE, 'install'])
  tpu_vm.main([*PLACE, 'run', '--', *WORDS])
  # It runs in the background: a stop that comes before its first line would
  # leave nothing to count below.
  deadline = time.monotonic() + 60
  while not (cloud.root / 'w0.seen').exists():
    assert time.monotonic() < deadline
    time.sleep(0.01)
  assert tpu_vm.main([*PLACE, 'stop']) == 0
  assert 'stopped, exit code 143' in capfd.readouterr().err
  assert tpu_vm.main([*PLACE, QUICK, 'resume', '--', *WORDS]) == 143
  assert len(cloud.seen(0)) == 1


@pytest.mark.process
def test_a_live_run_is_refused_and_a_dead_one_cleared(cloud, capfd):
  cloud.hosts(1, 'wait', 0)
  run = [*PLACE, 'run', '--', *WORDS]
  tpu_vm.main([*PLACE, 'install'])
  tpu_vm.main(run)
  pid = int((cloud.run(0) / 'pid').read_text())
  text = refusal(tpu_vm, run, errors.Locked)
  assert text.endswith(f'a run is alive here, pid {pid}: stop it first')
  text = refusal(tpu_vm, [*PLACE, 'install'], errors.Locked)
  assert text.endswith('a run is alive here: stop it first')
  # The machine goes down: no process is left to write an exit code.
  os.killpg(os.getpgid(pid), signal.SIGKILL)
  deadline = time.monotonic() + 20
  while Path(f'/proc/{pid}').exists() and time.monotonic() < deadline:
    time.sleep(0.01)
  text = refusal(tpu_vm, [*PLACE, 'logs'], commands.Unreachable)
  assert text == 'a: the run died: resume it'
  capfd.readouterr()
  tpu_vm.main(run)
  err = capfd.readouterr().err
  assert f'pid {pid} left its lock and is dead: taken over' in err
  assert tpu_vm.main([*PLACE, 'logs']) == 0


@pytest.mark.process
def test_a_lock_file_of_libtpu_is_cleared_only_if_nobody_holds_it(cloud, capfd):
  cloud.hosts(1, 0)
  tpu_vm.main([*PLACE, 'install'])
  lock = cloud.root / 'w0.tpu'
  lock.touch()
  run = [*PLACE, 'run', '--', *WORDS]
  tpu_vm.main(run)
  err = capfd.readouterr().err
  assert f'{lock}: left by a dead process: removed' in err
  assert not lock.exists()
  assert tpu_vm.main([*PLACE, 'logs']) == 0
  hold = (
    'import fcntl, sys; f = open(sys.argv[1], "w"); '
    'fcntl.lockf(f, fcntl.LOCK_EX); print("held", flush=True); input()'
  )
  with subprocess.Popen(
    [sys.executable, '-IS', '-c', hold, str(lock)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  ) as holder:
    assert holder.stdout is not None and holder.stdout.readline() == b'held\n'
    text = refusal(tpu_vm, run, errors.Locked)
    holder.communicate(b'\n')
  assert text.endswith(f'{lock}: another process holds the TPU: end it')


@pytest.mark.process
def test_what_has_not_run_has_no_log(cloud):
  cloud.hosts(1, 0)
  text = refusal(tpu_vm, [*PLACE, 'logs'])
  assert text == 'a: nothing has run there: run'
  assert cloud.verbs() == ['status']


@pytest.mark.process
def test_a_slice_that_is_there_is_taken_and_one_that_is_gone_is_fine(
  cloud, capfd
):
  cloud.reply(' create ', {'code': 1, 'err': 'ERROR: (x) ALREADY_EXISTS: a\n'})
  cloud.reply(' delete ', {'code': 1, 'err': 'ERROR: (x) NOT_FOUND: a\n'})
  cloud.states('ACTIVE')
  assert tpu_vm.main([*PLACE, 'create']) == 0
  assert capfd.readouterr().err == 'a: exists already: ACTIVE\n'
  assert tpu_vm.main([*PLACE, 'delete']) == 0


@pytest.mark.process
def test_a_slice_that_will_not_come_is_one_line(cloud):
  why = {'state': 'FAILED', 'failedData': {'error': {'message': 'no quota'}}}
  cloud.reply(' describe ', {'out': json.dumps({'state': why})})
  assert refusal(tpu_vm, [*PLACE, 'wait'], commands.Unreachable) == (
    'a: FAILED no quota: it will not come: delete it, then create it'
  )


@pytest.mark.process
def test_waiting_for_a_slice_has_a_deadline(cloud):
  cloud.states('WAITING_FOR_RESOURCES')
  argv = [*PLACE, '--poll_seconds=0.05', '--queue_hours=1e-4', 'wait']
  assert refusal(tpu_vm, argv, commands.Unreachable) == (
    'a: the slice did not come: not within 0.36 s: wait again, or delete it'
  )
  assert 0 < len(cloud.calls()) < 8


@pytest.mark.process
def test_following_a_run_has_a_deadline(cloud):
  cloud.hosts(1, 'wait')
  cloud.states('ACTIVE')
  tpu_vm.main([*PLACE, 'install'])
  tpu_vm.main([*PLACE, 'run', '--', *WORDS])
  text = refusal(
    tpu_vm, [*PLACE, QUICK, '--hours=2e-4', 'logs'], commands.Unreachable
  )
  assert text == 'a: the run has not ended within 0.72 s and goes on: see logs'


@pytest.mark.process
def test_only_what_is_committed_is_sent(cloud, repository):
  cloud.hosts(1, 0)
  (repository / 'configs/b.py').write_text(CONFIG)
  all_ = [*PLACE, QUICK, 'all', '--']
  text = refusal(tpu_vm, [*all_, '--config=configs/b.py', '--workdir=/x'])
  assert text.endswith('commit what is to run') and 'configs/b.py' in text
  path = repository / 'configs/a.py'
  path.write_text(f'{CONFIG}\n')
  try:
    text = refusal(tpu_vm, [*all_, *WORDS])
    assert text == (
      '1 files differ from HEAD, which is what is sent: commit them, or say '
      '--commit=HEAD'
    )
    assert cloud.calls() == []
    assert tpu_vm.main([*PLACE, '--commit=HEAD', 'install']) == 0
  finally:
    path.write_text(CONFIG)
    (repository / 'configs/b.py').unlink()
  sent = cloud.root / 'w0/lm-launch/src/configs'
  assert [x.name for x in sent.iterdir()] == ['a.py']
  assert (sent / 'a.py').read_text() == CONFIG


@pytest.mark.process
def test_ctrl_c_leaves_the_run_alone(cloud, monkeypatch, capfd):
  cloud.hosts(1, 'wait')
  tpu_vm.main([*PLACE, 'install'])
  tpu_vm.main([*PLACE, 'run', '--', *WORDS])

  def interrupt(*args, **options):
    raise KeyboardInterrupt

  monkeypatch.setattr(commands.Shell, 'stream', interrupt)
  assert tpu_vm.main([*PLACE, 'logs']) == 130
  assert 'what runs there goes on' in capfd.readouterr().err
  os.kill(int((cloud.run(0) / 'pid').read_text()), 0)


@pytest.fixture
def data(tmp_path):
  """A folder of prepared data."""
  folder = tmp_path / 'prepared data'
  programs.write_data(folder)
  (folder / 'tokenizer.model').write_text('pieces')
  return folder


def lies_at(folder: Path) -> dict[str, bytes]:
  """The files below a folder, without the lock of who copies to there."""
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file() and path.name != '.lock'
  }


def shards(data: Path) -> list[Path]:
  return sorted(x for x in data.rglob('*') if x.suffix in ('.bin', '.idx'))


READS_DATA = ['--config=configs/reads.py', '--workdir=/data/a']


@pytest.fixture
def reads_data(repository):
  """Commits, while a test runs, a config that reads prepared data."""
  sources = (
    'data=dict(fn="lm.data.stream:make", sources=dict(a=dict(path="none")))'
  )
  text = CONFIG.replace("text=''", f"text='', {sources}")
  assert text != CONFIG
  (repository / 'configs/reads.py').write_text(text)
  author = ['-c', 'user.name=a', '-c', 'user.email=a']
  commit = [*author, 'commit', '--quiet', '--message=a']
  for words in (['add', '.'], commit):
    subprocess.run(['git', *words], cwd=repository, check=True)
  yield
  reset = ['git', 'reset', '--quiet', '--hard', 'HEAD~1']
  subprocess.run(reset, cwd=repository, check=True)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.usefixtures('reads_data')
def test_a_run_has_its_data_on_every_host_before_it_starts(cloud, data, capfd):
  cloud.hosts(2, 'killed', 0)
  cloud.states('ACTIVE')
  first, *others = shards(data)
  assert first.parent == others[0].parent == data / 'train'
  # Both hosts have one file and a shard of other data; one has another file,
  # which is damaged on the other host.
  for worker, damage in ((0, b''), (1, b'x')):
    there = cloud.root / f'w{worker}/lm-launch/data/train'
    there.mkdir(parents=True)
    (there / first.name).write_bytes(first.read_bytes() + damage)
    (there / 'other.bin').touch()
    shutil.copy(others[0], there)
  argv = ['--name=a', '--type=v5p-16', '--zone=us-east5-a', QUICK]
  argv += [f'--data={data}', 'all', '--', *READS_DATA]
  assert tpu_vm.main(argv) == 0
  for worker in range(2):
    there = cloud.root / f'w{worker}/lm-launch/data'
    assert lies_at(there) == lies_at(data)
    words = [*READS_DATA, f'--data={there}']
    # started again in place, with the same data
    assert cloud.seen(worker) == [[words, 'auto']] * 2
  sent = [words[5] for words in cloud.calls() if words[4] == 'scp']
  # what both had is not sent, and nothing is sent twice
  assert sorted(x for x in sent if not x.endswith('.gz')) == sorted(
    str(x) for x in (first, *others[1:])
  )
  verbs = [x for x in cloud.verbs() if x not in ('describe', 'status')]
  before = verbs[: verbs.index('start')]
  assert before[:5] == ['create', 'scp', 'install', 'idle', 'scp']
  assert before[5:7] == ['unpack', '--check'] and before[-1] == '--check'


@pytest.mark.process
@pytest.mark.usefixtures('reads_data')
def test_a_live_run_keeps_its_data(cloud, data):
  cloud.hosts(1, 'wait')
  tpu_vm.main([*PLACE, 'install'])
  tpu_vm.main([*PLACE, 'run', '--', *WORDS])
  argv = [*PLACE, f'--data={data}', 'run', '--', *READS_DATA]
  text = refusal(tpu_vm, argv, errors.Locked)
  assert text.endswith('a run is alive here: stop it first')
  assert cloud.verbs()[-1] == 'idle'


@pytest.mark.process
@pytest.mark.usefixtures('reads_data')
def test_a_dry_run_shows_how_the_data_comes(cloud, data, capsys):
  place = '--zone=us-east5-a --quiet'
  ssh = 'gcloud compute tpus tpu-vm ssh a --worker=all'
  tail = '--ssh-flag=-oServerAliveInterval=30 '
  tail += f'--ssh-flag=-oServerAliveCountMax=4 {place}'
  stage = 'cd lm-launch/src && ../venv/bin/python -m tools.launch.stage'
  worker = 'python3 lm-launch/src/tools/launch/worker.py'
  start = f'{worker} start --token TOKEN --data -- {" ".join(READS_DATA)}'
  argv = [*PLACE, '--dry_run', '--data=gs://bucket/a', 'run', '--', *READS_DATA]
  assert tpu_vm.main(argv) == 0
  assert capsys.readouterr().out == (
    f"{ssh} '--command={worker} idle' {tail}\n"
    f"{ssh} '--command={stage} gs://bucket/a ../data' {tail}\n"
    f"{ssh} '--command={start}' {tail}\n"
  )
  argv = [*PLACE, '--dry_run', f'--data={data}', 'run', '--', *READS_DATA]
  assert tpu_vm.main(argv) == 0
  scp = 'gcloud compute tpus tpu-vm scp'
  count = len(shards(data))
  name = '00000.bin'
  assert (data / 'train' / name).exists()
  assert capsys.readouterr().out == (
    f"{ssh} '--command={worker} idle' {tail}\n"
    f"tar -czf /tmp/lm-data.tar.gz -C '{data}' tokenizer.model"
    ' train/manifest.json valid/manifest.json\n'
    f'{scp} /tmp/lm-data.tar.gz a: --worker=all {place}\n'
    f"{ssh} '--command=mkdir -p lm-launch/data &&"
    f" tar -xzf lm-data.tar.gz -C lm-launch/data' {tail}\n"
    f"{ssh} '--command={stage} --check ../data' {tail}\n"
    f'# each of {count} files that a worker lacks, such as\n'
    f"{scp} '{data}/train/{name}' a:lm-launch/data/train/{name}"
    f' --worker=all {place}\n'
    f"{ssh} '--command={stage} --check ../data' {tail}\n"
    f"{ssh} '--command={start}' {tail}\n"
  )
  assert cloud.calls() == []


@pytest.mark.process
@pytest.mark.usefixtures('reads_data')
def test_data_that_cannot_be_copied_is_refused(cloud, data, capsys):
  run = ['run', '--', *READS_DATA]
  text = refusal(tpu_vm, [*PLACE, '--data=gs://Bucket/a', *run])
  assert text.endswith('data in a bucket is gs://BUCKET/FOLDER')
  text = refusal(tpu_vm, [*PLACE, f'--data={cloud.root}', *run])
  assert text.endswith('that lm.corpus.prepare.write_dataset wrote')
  text = refusal(tpu_vm, [*PLACE, f'--data={data}', *run, f'--data={data}'])
  assert text.startswith('--data is given twice')
  with pytest.raises(SystemExit):  # a config that reads none
    tpu_vm.main([*PLACE, f'--data={data}', 'run', '--', *WORDS])
  assert 'this config reads no prepared texts' in capsys.readouterr().err
  argv = ['--name=a', '--type=v5e-8', '--image=a', '--data=data', 'apply', '--']
  assert refusal(gke, [*argv, *WORDS]) == (
    "--data='data': give the absolute path in the pods"
  )
  assert cloud.calls() == []


# What all launchers share.


@pytest.mark.process
def test_failures_that_may_pass_are_tried_again_up_to_a_limit(cloud, capfd):
  shell = commands.Shell(dry_run=False, pause_seconds=0.001, tries=3)
  words = ['gcloud', 'compute', 'tpus', 'queued-resources', 'list', '--x=y']
  cloud.reply(' list', {'code': 1, 'err': 'HttpError 503\n'}, {'out': 'ok'})
  assert shell.run(words) == 'ok'
  assert len(cloud.calls()) == 2
  cloud.reply(' list', {'code': 1, 'err': 'ERROR: (a.b-c) RESOURCE_EXHAUSTED'})
  with pytest.raises(commands.Unreachable) as caught:
    shell.run(words)
  assert str(caught.value) == (
    'gcloud compute tpus queued-resources list: RESOURCE_EXHAUSTED: '
    'try the command of --dry_run by hand'
  )
  assert caught.value.exit_code == 8
  assert len(cloud.calls()) == 5
  cloud.reply(' list', {'code': 1, 'err': 'ERROR: (a) PERMISSION_DENIED: b'})
  with pytest.raises(commands.Unreachable, match='PERMISSION_DENIED: b'):
    shell.run(words)
  assert len(cloud.calls()) == 6
  capfd.readouterr()


@pytest.mark.process
def test_a_command_that_hangs_is_ended_with_all_it_started(cloud, tmp_path):
  shell = commands.Shell(dry_run=False, pause_seconds=0.001)
  script = f'sleep 60 & echo $! > {tmp_path}/child; wait'
  with pytest.raises(commands.Unreachable) as caught:
    shell.run(['bash', '-c', script], seconds=0.3)
  assert str(caught.value) == (
    f'bash {script}'[:80] + ': no answer within its deadline: '
    'try the command of --dry_run by hand'
  )
  child = Path('/proc') / (tmp_path / 'child').read_text().strip()
  deadline = time.monotonic() + 20
  while child.exists() and time.monotonic() < deadline:
    time.sleep(0.01)
  assert not child.exists()
  result = shell.stream(['sleep', '60'], print, seconds=0.1)
  assert result.code == 124


@pytest.mark.process
def test_a_program_that_is_not_there_is_one_line(cloud):
  shell = commands.Shell(dry_run=False)
  with pytest.raises(commands.Unreachable) as caught:
    shell.run(['gclout', 'x'])
  assert str(caught.value) == 'gclout: no such program: install it'


@pytest.mark.process
def test_a_second_launcher_is_refused_and_a_dead_one_is_taken_over(
  cloud, tmp_path, capfd
):
  code = (
    'import sys, time; from tools.launch import arguments, commands\n'
    'shell = commands.Shell(dry_run=False)\n'
    'with commands.alone("tpu_vm.default.us-east5-a.a", shell):\n'
    '  print("held", flush=True)\n'
    '  time.sleep(60)\n'
  )
  cloud.reply(' delete ', {'code': 0})
  with subprocess.Popen(
    [sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE
  ) as other:
    assert other.stdout is not None and other.stdout.readline() == b'held\n'
    text = refusal(tpu_vm, [*PLACE, 'delete'], errors.Locked)
    assert 'another launcher is at work on it' in text
    assert f'pid {other.pid} on ' in text and cloud.calls() == []
    assert tpu_vm.main(['--name=b', *PLACE[1:], 'delete']) == 0
    other.kill()
  cloud.reply(' delete ', {'code': 1, 'err': 'no'}, {'code': 0})
  capfd.readouterr()
  assert 'no: try' in refusal(tpu_vm, [*PLACE, 'delete'], commands.Unreachable)
  (line,) = capfd.readouterr().err.splitlines()
  assert f'left by pid {other.pid} on ' in line
  assert line.endswith(', which is dead: taken over')
  assert tpu_vm.main([*PLACE, 'delete']) == 0
  assert capfd.readouterr().err == ''


@pytest.mark.process
@pytest.mark.parametrize(
  'name', ['', 'A', '1a', 'a-', 'a_b', 'a b', 'a;b', '$a', '../a', 'a' * 64]
)
def test_unsafe_names_are_refused(cloud, name):
  text = refusal(tpu_vm, [f'--name={name}', *PLACE[1:], 'create'])
  assert text.startswith(f'--name={name[:60]!r}: a name has at most 63 ')
  for program, argv in (
    (slurm, ['--gpus=1', '--time=1', '--', *WORDS]),
    (gke, ['--type=v5e-8', 'delete']),
  ):
    assert 'a name has at most' in refusal(program, [f'--name={name}', *argv])
  assert cloud.calls() == []


@pytest.mark.process
@pytest.mark.parametrize(
  'program, flag',
  [
    (tpu_vm, '--zone=us-east5-a; id'),
    (tpu_vm, '--project=$x'),
    (tpu_vm, '--runtime=-x'),
    (tpu_vm, '--commit=-x'),
    (tpu_vm, '--create_flag=a'),
    (tpu_vm, '--restarts=-1'),
    (tpu_vm, '--env=a'),
    (tpu_vm, '--env=a=b\n'),
    (slurm, '--nodes=0'),
    (slurm, '--time=1h'),
    (slurm, '--partition=a b'),
    (slurm, '--setup=a\nb'),
    (slurm, '--folder=a%b'),
    (tpu_vm, '--setup='),
    (gke, '--mount=data'),
    (gke, '--namespace=A'),
    (gke, '--image=a b'),
    (gke, '--image=gcr.io/My/lm'),
    (gke, '--image=a/lm:'),
    (gke, '--cpus=-1'),
    (slurm, '--sbatch=qos=high'),
    (slurm, '--sbatch=--a=b\n#SBATCH --c=d'),
    (slurm, '--sbatch=--output=x'),
    (gke, '--slices=0'),
  ],
)
def test_unsafe_flags_are_refused(cloud, program, flag):
  rest = {
    tpu_vm: [*PLACE, flag, 'run', '--', *WORDS],
    slurm: ['--name=a', '--gpus=1', '--time=1', flag, '--', *WORDS],
    gke: ['--name=a', '--type=v5e-8', '--image=a', flag, 'apply', '--', *WORDS],
  }[program]
  text = refusal(program, rest)
  assert text.startswith(flag.partition('=')[0])
  assert cloud.calls() == []


@pytest.mark.process
@pytest.mark.parametrize(
  'words, text',
  [
    ([], 'say what to run: ...'),
    ([*WORDS, '--config.text=a\nb'], 'a control character, such as'),
    ([*WORDS, '--config.text=\0'], 'a control character, such as'),
    ([WORDS[0], '--workdir=gs://bucket'], 'a remote workdir is gs://BUCKET/'),
    ([WORDS[0], '--workdir=gs://Bucket/a'], 'a remote workdir is gs://'),
    ([WORDS[0], '--workdir=runs/a'], 'give the absolute path of a disk'),
    (['--config=../main/a.py', WORDS[1]], 'outside the repository'),
  ],
)
def test_arguments_that_cannot_be_sent_are_refused(
  cloud, repository, words, text
):
  (repository.parent / 'main').mkdir(exist_ok=True)
  shutil.copy(repository / 'configs/a.py', repository.parent / 'main/a.py')
  assert text in refusal(tpu_vm, [*PLACE, '--spot', 'run', '--', *words])
  assert cloud.calls() == []


@pytest.mark.process
def test_a_bucket_is_the_workdir_of_one_host(cloud, repository):
  words = ['run', '--', WORDS[0], '--workdir=gs://bucket/a']
  several = ['--name=a', '--type=v5litepod-16', '--zone=us-east5-a']
  said = refusal(tpu_vm, [*several, *words])
  assert '4 hosts need a folder that all of them see: mount the b' in said
  assert cloud.calls() == []
  assert tpu_vm.main([*PLACE, '--spot', '--dry_run', *words]) == 0


@pytest.mark.process
def test_a_wrong_key_ends_it_before_anything_is_asked(cloud, capsys):
  with pytest.raises(SystemExit) as caught:
    tpu_vm.main([*PLACE, 'run', '--', *WORDS, '--config.stebs=1'])
  assert caught.value.code == 2
  assert 'did you mean steps?' in capsys.readouterr().err
  assert cloud.calls() == []


# SLURM.


def job(tmp_path: Path, *words: str) -> list[str]:
  return [
    *('--name=a', '--gpus=2', '--time=1:00:00', f'--folder={tmp_path}/jobs'),
    *(QUICK, *words),
  ]


@pytest.mark.process
@pytest.mark.parametrize(
  'code, count, requeued',
  [(0, 0, False), (2, 0, False), (143, 0, True), (143, 3, False)],
)
def test_a_job_runs_and_goes_back_into_the_queue_if_it_was_stopped(
  cloud, tmp_path, code, count, requeued
):
  cloud.reply('^sbatch', {'out': '77\n'})
  record = f'import json, sys; json.dump(sys.argv, open("{tmp_path}/got", "w"))'
  python = tmp_path / 'a python'
  python.write_text(
    f'#!/bin/bash\n{sys.executable} -IS -c {shlex.quote(record)} "$@"\n'
    'echo "$LM_DISTRIBUTED $LM_LISTEN ${#LM_SECRET} $JAX_LOCAL_DEVICE_IDS $X"\n'
    f'exit {code}\n'
  )
  python.chmod(0o755)
  argv = job(tmp_path, '--nodes=2', f'--python={python}', '--restarts=3')
  argv += ['--env=X=1 2', '--', *WORDS, NASTY]
  assert slurm.main(argv) == 0
  script = tmp_path / 'jobs/a.sbatch'
  assert cloud.calls() == [['sbatch', '--parsable', str(script)]]
  subprocess.run(['bash', '-n', str(script)], check=True)
  done = subprocess.run(
    ['bash', str(script)],
    env={
      **os.environ,
      'SLURM_JOB_ID': '77',
      'SLURM_RESTART_COUNT': str(count),
    },
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (code, '')
  assert done.stdout == 'auto private 32 0,1 1 2\n'
  got = json.loads((tmp_path / 'got').read_text())
  assert got[1:] == ['-u', '-m', 'lm.train', *WORDS, NASTY]
  assert (tmp_path / 'jobs/a-77.code').read_text() == f'{code}\n'
  assert (cloud.calls()[-1] == ['scontrol', 'requeue', '77']) == requeued


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.usefixtures('reads_data')
def test_a_job_copies_its_data_first(cloud, tmp_path, data):
  cloud.reply('^sbatch', {'out': '77\n'})
  python = tmp_path / 'python'
  python.write_text(
    '#!/bin/bash\n'
    f'if [ "$3" = tools.launch.stage ]; then PYTHONPATH={ROOT} exec'
    f' {sys.executable} -P "$@"; fi\n'
    'printf "%s\\n" "${@: -1}"\n'
  )
  python.chmod(0o755)
  scratch = tmp_path / 'a disk'
  argv = job(tmp_path, f'--python={python}', f'--scratch={scratch}')
  assert slurm.main([*argv, f'--data={data}', '--', *READS_DATA]) == 0

  def run() -> subprocess.CompletedProcess[str]:
    return subprocess.run(
      ['bash', str(tmp_path / 'jobs/a.sbatch')],
      env={**os.environ, 'SLURM_JOB_ID': '77'},
      capture_output=True,
      text=True,
    )

  first, again = run(), run()
  (there,) = scratch.iterdir()
  assert lies_at(there) == lies_at(data)
  files = shards(data)
  size = sum(x.stat().st_size for x in files) / 1e9
  assert first.stdout.splitlines() == [
    f'{there}: {len(files)} files copied ({size:.3g} GB), 0 were there',
    f'--data={there}',
  ]
  assert again.stdout.splitlines()[0].endswith(f' {len(files)} were there')
  # What goes wrong is the job's exit code, and nothing is trained.
  shutil.rmtree(scratch)
  files[0].write_bytes(b'')
  failed = run()
  assert failed.returncode == 4 and '--data' not in failed.stdout
  assert (tmp_path / 'jobs/a-77.code').read_text() == '4\n'


@pytest.mark.process
def test_a_job_is_followed_through_requeues(cloud, tmp_path, capfd):
  busy = 'sbatch: error: Batch job submission failed: Socket timed out\n'
  cloud.reply('^sbatch', {'code': 1, 'err': busy}, {'out': '77;cluster\n'})
  states = [{'out': x} for x in ('PENDING\n', 'RUNNING\n', 'PENDING\n')]
  gone = {'code': 1, 'err': 'slurm_load_jobs error: Invalid job id specified\n'}
  down = {'code': 1, 'err': 'slurm_load_jobs error: no\n'}
  cloud.reply('^squeue', *states, down, gone)
  (tmp_path / 'jobs').mkdir()
  (tmp_path / 'jobs/a-77.log').write_text('step 1\n')
  (tmp_path / 'jobs/a-77.code').write_text('6\n')
  argv = job(tmp_path, '--follow', '--', *WORDS)
  assert slurm.main(argv) == 6
  out, err = capfd.readouterr()
  assert out == '77\nstep 1\n'
  assert f'job 77: its log is {tmp_path}/jobs/a-77.log' in err
  assert [x[0] for x in cloud.calls()] == ['sbatch'] * 2 + ['squeue'] * 5


@pytest.mark.process
def test_a_job_without_an_exit_code_is_one_line(cloud, tmp_path):
  cloud.reply('^sbatch', {'out': '77\n'})
  argv = job(tmp_path, '--follow', '--', *WORDS)
  text = refusal(slurm, argv, commands.Unreachable)
  assert text.startswith('job 77: ended without an exit code: cancelled, or')
  cloud.reply('^squeue', {'out': 'RUNNING\n'})
  argv = ['--hours=1e-5', *argv]
  assert refusal(slurm, argv, commands.Unreachable) == (
    'job 77 is still in the queue: not within 0.036 s: it goes on; scancel '
    'ends it'
  )
  cloud.reply('^sbatch', {'out': 'Submitted\n'})
  text = refusal(slurm, argv, commands.Unreachable)
  assert text == "sbatch: answered 'Submitted': no job id"


# GKE.


def made(*argv: str) -> dict:
  """The JobSet of a run."""
  return applied(*argv)[-1]


def applied(*argv: str) -> list[dict]:
  """Lists what is applied for a run."""
  flags, _ = gke._flags(['--name=a', '--image=r/lm:1', *argv, 'apply'])
  words = ('--config=configs/a.py', '--workdir=/b/a', '--config.text=$(X)$')
  training = arguments.Training(words, words[0], '/b/a')
  found = gke.manifest(flags, slices.find(flags.type), training, 'so secret')
  return found.get('items', [found])


@pytest.mark.parametrize(
  'argv, replicas, hosts, chips, selected, asked',
  [
    (['v5e-8'], 1, 1, 8, 'tpu-v5-lite-podslice 2x4', '96 192G'),
    (['v5p-512'], 1, 64, 4, 'tpu-v5p-slice 4x8x8', '104 224G'),
    (['v5p-512', '--slices=2'], 2, 64, 4, 'tpu-v5p-slice 4x8x8', '104 224G'),
    (
      ['v6e-1', '--cpus=7', '--memory_gb=9'],
      1,
      1,
      1,
      'tpu-v6e-slice 1x1',
      '7 9G',
    ),
  ],
)
def test_a_jobset_has_a_pod_a_host(
  argv, replicas, hosts, chips, selected, asked
):
  argv = [f'--type={argv[0]}', *argv[1:]]
  accelerator, topology = selected.split()
  cpu, memory = asked.split()
  spec = made(*argv)['spec']
  (replicated,) = spec['replicatedJobs']
  assert replicated['replicas'] == replicas
  job = replicated['template']['spec']
  assert (job['parallelism'], job['completions']) == (hosts, hosts)
  pod = job['template']['spec']
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': accelerator,
    'cloud.google.com/gke-tpu-topology': topology,
  }
  (container,) = pod['containers']
  assert container['resources'] == {
    'requests': {'google.com/tpu': chips, 'cpu': cpu, 'memory': memory},
    'limits': {'google.com/tpu': chips},
  }
  assert spec['failurePolicy']['maxRestarts'] == 100
  known = {'secretKeyRef': {'name': 'a', 'key': 'secret'}}
  many = [
    {'name': 'LM_DISTRIBUTED', 'value': 'auto'},
    {'name': 'LM_LISTEN', 'value': 'private'},
    {'name': 'LM_SECRET', 'valueFrom': known},
  ]
  assert container['env'] == (many if replicas * hosts > 1 else [])
  secret = {
    'apiVersion': 'v1',
    'kind': 'Secret',
    'metadata': {'name': 'a'},
    'stringData': {'secret': 'so secret'},
  }
  assert applied(*argv)[:-1] == ([secret] if replicas * hosts > 1 else [])


@pytest.mark.parametrize(
  'image',
  [
    'REGISTRY/lm:1',  # as the Dockerfile and --help spell it
    'gcr.io/my-project/lm:1',
    'us-docker.pkg.dev/my-project/runs/lm:1.2-RC',
    'localhost:5000/lm',
    f'gcr.io/a/lm:1@sha256:{"0f" * 32}',
  ],
)
def test_names_of_images_are_those_of_docker(image):
  found = made('--type=v5e-8', f'--image={image}')
  job = found['spec']['replicatedJobs'][0]['template']['spec']
  (container,) = job['template']['spec']['containers']
  assert container['image'] == image


def test_kubernetes_replaces_nothing_in_the_arguments():
  found = made('--type=v5e-8', '--env=A=$(B)', '--spot')
  job = found['spec']['replicatedJobs'][0]['template']['spec']
  pod = job['template']['spec']
  (container,) = pod['containers']
  assert container['command'][4:] == [
    '--config=configs/a.py',
    '--workdir=/b/a',
    '--config.text=$$(X)$$',
  ]
  assert container['env'] == [{'name': 'A', 'value': '$$(B)'}]
  assert pod['nodeSelector']['cloud.google.com/gke-spot'] == 'true'


def test_a_bucket_is_a_folder_of_the_pods():
  found = made('--type=v5e-8', '--mount=data:/data', '--mount=runs:/runs')
  job = found['spec']['replicatedJobs'][0]['template']['spec']
  pod = job['template']['spec']
  assert job['template']['metadata']['annotations'] == {
    'gke-gcsfuse/volumes': 'true'
  }
  (container,) = pod['containers']
  buckets = {
    x['name']: x['csi']['volumeAttributes']['bucketName']
    for x in pod['volumes']
  }
  mounts = {x['mountPath']: x['name'] for x in container['volumeMounts']}
  assert {k: buckets[v] for k, v in mounts.items()} == {
    '/data': 'data',
    '/runs': 'runs',
  }


def test_pods_copy_their_data_first():
  found = made('--type=v5e-8', '--mount=web:/web', '--data=/web/a$')
  job = found['spec']['replicatedJobs'][0]['template']['spec']
  pod = job['template']['spec']
  (first,), (train,) = pod['initContainers'], pod['containers']
  stage = ['tools.launch.stage', '/web/a$$', '/scratch/data']
  assert first['command'] == ['python', '-u', '-m', *stage]
  assert first['image'] == train['image'] == 'r/lm:1'
  assert train['command'][-1] == '--data=/scratch/data'
  disks = [x['name'] for x in pod['volumes']]
  assert disks == ['bucket-0', 'scratch']
  assert [x['mountPath'] for x in first['volumeMounts']] == ['/web', '/scratch']
  assert first['volumeMounts'] == train['volumeMounts']
  rules = job['podFailurePolicy']['rules']
  names = [x['onExitCodes']['containerName'] for x in rules]
  assert names == ['train', 'stage']


def jobset(**status) -> dict:
  return {'out': json.dumps({'status': status})}


@pytest.mark.process
def test_a_jobset_is_applied_awaited_and_followed(cloud, capfd):
  ready = [{'name': 'slice', 'ready': 1}]
  cloud.reply(
    ' get jobset ',
    {'out': '{}'},
    {'code': 1, 'err': 'Unable to connect: net/http: TLS handshake timeout\n'},
    jobset(replicatedJobsStatus=ready),
    jobset(replicatedJobsStatus=ready),
    {'code': 1, 'err': 'error: no\n'},
    jobset(terminalState='Failed'),
  )
  cloud.reply(' logs ', {'out': 'step 1\n'}, {'out': 'step 2\n'})
  ends = [{'state': {'terminated': {'exitCode': x}}} for x in (134, 5)]
  pods = [{'status': {'containerStatuses': [x]}} for x in ends]
  pods += [{'status': {}}, {'status': {'containerStatuses': [{'state': {}}]}}]
  cloud.reply(' get pods ', {'out': json.dumps({'items': pods})})
  argv = ['--name=a', '--type=v5e-8', '--image=r/lm:1', QUICK, 'all', '--']
  assert gke.main([*argv, *WORDS, NASTY]) == 5
  words = json.loads(cloud.stdin())['spec']['replicatedJobs'][0]['template'][
    'spec'
  ]['template']['spec']['containers'][0]['command']
  assert words[4:] == [*WORDS, NASTY.replace('$', '$$')]
  out, err = capfd.readouterr()
  assert out == 'step 1\nstep 2\nstep 2\n'
  assert 'kubectl get jobset a: no: try the command' in err
  followed = [x for x in cloud.calls() if x[1] == 'logs']
  assert [x[-1] for x in followed] == ['--tail=1000', *['--since=10s'] * 2]


@pytest.mark.process
def test_a_jobset_that_is_done_and_one_that_never_comes(cloud):
  argv = ['--name=a', '--type=v5e-8', QUICK]
  cloud.reply(' get jobset ', jobset(terminalState='Completed'))
  assert gke.main([*argv, 'wait']) == 0
  assert gke.main([*argv, 'logs']) == 0
  cloud.reply(' get jobset ', jobset())
  argv += ['--queue_hours=1e-5', '--hours=1e-5']
  assert refusal(gke, [*argv, 'wait'], commands.Unreachable) == (
    'a: its pods did not come: not within 0.036 s: wait again, or delete it'
  )
  assert refusal(gke, [*argv, 'logs'], commands.Unreachable) == (
    'a: the run has not ended within 0.036 s and goes on: see logs'
  )
  text = refusal(gke, [*argv, 'apply', '--', *WORDS])
  assert text == '--image is missing: build one with tools/launch/Dockerfile'
