"""What it costs to train a 3D diffusion model on medical volumes: measured, predicted, reported.

    cli.py commands.py     what can be typed, and who carries it out
    presets.py methods.py  the workloads and the methods, by name
    errors.py sizes.py     a person's mistakes in one line; sizes as people type and read them

    run/        the benchmark: its command, a trial, what makes trials comparable
    harness/    what trials and trainings share: launcher, planning, processes, window, console
    records/    the columns of every CSV, the run folder, reading and writing
    ddpm/       the diffusion process, the samplers, the training step
    data/       volumes: sources, preprocessing, cache, split, batches
    probes/     memory, FLOPs, energy, temperature, the host
    predict/    a step on fake tensors: predict, fit, recommend, scale, check
    validate/   prediction beside measurement on this device
    quality/    training that lasts: checkpoints, validation, scores, samples
    report/     tables, figures, claims, the page: from files alone

    command -> harness/launcher.py: plans -> harness/worker.py: a process each -> probes
                                  -> records: rows, as they come -> report

Arrows point one way: run, quality, validate -> harness -> methods -> ddpm, data, probes -> records.
`methods.py` alone knows `models/` and `baselines/`, which import nothing of this package.
"""

__version__ = "0.2.0"
