"""The benchmark: trials of every method, each in a process of its own.

command.py   the command `run`
plan.py      all that one trial needs to know
trial.py     what its process does
recorder.py  its rows, and what follows from them
fairness.py  the same temperature at the start of every trial, no other load
sensors.py   what the benchmark's own process reads of the device
"""
