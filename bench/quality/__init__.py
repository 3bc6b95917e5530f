"""Training that lasts: what a method learns, how fast, and how good its samples are.

trainings.py       the command `quality`
budget.py          the widest network of a method that trains in so much memory
plan.py            all that one training needs to know
trainer.py         what its process does
recorder.py        its row in trained.csv
ema.py             the mean of the weights over the last steps
validation.py      ε-MSE on volumes, timesteps and noise that are the same for every method
checkpoint.py      a training as a file, and back, to the last bit
tensorboard_log.py the learning curve for TensorBoard

evaluation.py      what follows a training: scores, samples, their memory
metrics.py         the definitions
scoring.py         the protocols: validation set, best batch, samples
draw.py            the command `sample`: volumes from the checkpoints of a run
trained.py         its trained networks, for your own code
"""

from .trained import from_run

__all__ = ["from_run"]
