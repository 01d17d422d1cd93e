"""Launchers: a run of lm.train on TPU VMs, a SLURM cluster or GKE.

tpu_vm.py, slurm.py and gke.py are programs; `--dry_run` prints every command
that they would run. commands.py and arguments.py are what they share, slices.py
knows TPUs by name, tpu_machine.py is one of them, with what tpu_workers.py and
tpu_data.py do there, and worker.py is the part that runs on it. stage.py brings
prepared data to a host.
"""
