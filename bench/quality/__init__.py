"""Whether it learns: training to a budget, samples, scores."""
