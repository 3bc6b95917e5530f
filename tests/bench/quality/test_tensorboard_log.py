"""TensorBoard is shown the points of learning.csv, each once."""

import numpy as np
import pytest

from bench.harness.window import Window
from bench.records.folder import QualityRun
from tests.bench.quality.trainings import tiny_plan, train


@pytest.mark.slow
def test_the_same_points_also_of_a_training_that_was_resumed(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = QualityRun.create(tmp_path, "small")
    plan = tiny_plan(run, tensorboard=True, window=Window(steps=4), validations=4)
    train(plan, stop_after=3)
    train(plan)
    events = EventAccumulator(str(run.folder / "tensorboard" / "idm-0"))
    events.Reload()
    curve = run.learning()
    for column in ("val_mse", "val_mse_ema", "learning_rate"):
        points = events.Scalars(column)
        assert [point.step for point in points] == curve["step"].tolist() == [0, 1, 2, 3, 4]
        assert np.allclose([point.value for point in points], curve[column])
