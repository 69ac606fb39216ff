"""A training on Ray Train's workers, restarted if one of them dies.

It writes one folder of safetensors per epoch, and the log; `tpo.engines.training.worker` runs in each worker, which
`tpo.engines.training.group` starts and watches. A worker that dies or hangs is restarted and resumes from its last
checkpoint. An error raised by the training itself isn't retried: it would only occur again, later.
"""

from dataclasses import replace

from tpo.console import say
from tpo.engines.training.group import SECTIONS, WorkerGroup
from tpo.engines.training.job import TrainingJob
from tpo.engines.training.worker import Progress, Stop, finished, read_log, write_dataset
from tpo.errors import StageError
from tpo.records import Epoch
from tpo.run_context import run_context
from tpo.storage.disk import bring_here
from tpo.storage.mirror import catch_up, hand_over

RESTARTS = 3
"""Maximum number of restarts in one call: more deaths than that have a lasting cause."""


def train_model(job: TrainingJob, *, progress: Progress, group: WorkerGroup, stop: Stop = lambda: False) -> list[Epoch]:
    """Trains a model on a group's workers; `epoch_<n>` of the job's folder holds it after each epoch, or only after the
    last if another round follows.

    Continues what an earlier call for the same job left in its folder. If `stop`, which is called twice a second,
    returns true, training ends with a checkpoint, and no epochs are returned. Raises `StageError` with the worker's own
    error if training fails, or if workers keep dying.
    """
    config, trainer, place = job.config, job.trainer, job.place
    folder = job.folder.resolve()
    passes = config.passes(len(job.rows))
    if finished(folder, passes, place):
        return read_log(folder)
    bring_here(folder)
    write_dataset(job.rows, folder / "dataset")
    arguments = {
        "model": str(job.model.resolve()),
        "reference": None if job.reference is None else str(job.reference.resolve()),
        "folder": str(folder),
        "section": next(name for name, kind in SECTIONS.items() if isinstance(config, kind)),
        "config": config.model_dump(mode="json"),
        "trainer": trainer.model_dump(mode="json"),
        "seed": job.seed,
        "tracked": job.tracked,
        "place": replace(place, carried=None if place.carried is None else place.carried.resolve()),
        "handover": hand_over(),
    }
    deaths: list[str] = []
    while len(deaths) <= RESTARTS:
        if deaths:
            say(f"training: {deaths[-1]}; restarted from its last checkpoint")
            run_context().metrics.failed_actor("worker")
        death = group.train(arguments, progress=progress, stop=stop)
        if death is None:
            catch_up(folder)
            return read_log(folder) if finished(folder, passes, place) else []
        deaths.append(death)
    raise StageError(
        f"training failed: {deaths[-1]}, and so {len(deaths)} times. Its checkpoints are kept: rerun to continue. If "
        f"memory ran out, lower {arguments['section']}.micro_batch_size (now {config.micro_batch_size})"
    )
