"""Training that lasts: does a method learn, how fast, and what are its samples worth?

command.py      the command `quality`: plans, budgets, split; then a process a training; the report
budget.py       the widest network of a method that trains in so much memory
cohort.py       who trains, who validates, who tests: split.json
runner.py       the trainings one after another, and what became of each
plan.py         all that one training needs to know
trainee.py      what its process does
ema.py          the mean of the weights over the last steps
validation.py   ε-MSE on volumes, timesteps and noise that are the same for every method
checkpoint.py   a training as a file, and back, to the last bit
learning.py     the tables of such a run: learning.csv, trained.csv, quality.csv
scalars.py      the learning curve for TensorBoard

evaluation.py   what follows a training: scores, samples, their memory
metrics.py      the definitions
scoring.py      the protocols: validation set, best batch, samples
sampling.py     from noise to volumes, and to NIfTI
"""
