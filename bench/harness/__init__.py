"""What the benchmark and the trainings share.

launcher.py     a run from its command to its report, new or resumed
planning.py     from flags to plans: device, window, workloads, volumes
plan.py         what one process needs to know
runner.py       plans one after another, interrupts, rows
worker.py       a process, from both sides
process.py      what a process asks of the operating system
window.py       the fixed stretch of training, on the harness's clock
console.py      what a person sees meanwhile
output.py       output that no measurement depends on
child.py        the first thing that a worker's process runs
backends.py     how PyTorch computes on a card
environment.py  machine, versions, commit
"""
