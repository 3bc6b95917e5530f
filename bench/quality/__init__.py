"""Training that lasts: does a method learn, and how fast in steps, minutes and joules?

command.py      the command `quality`: plans, budgets, split; then a process a training
budget.py       the widest network of a method that trains in so much memory
cohort.py       who trains, who validates, who tests: split.json
trainee.py      one training: its plan and what its process does
ema.py          the mean of the weights over the last steps
validation.py   ε-MSE on volumes, timesteps and noise that are the same for every method
checkpoint.py   a training as a file, and back, to the last bit
learning.py     the tables of such a run: learning.csv, trained.csv
scalars.py      the same curve for TensorBoard
"""
