"""Make what comes with the library: a taught path, a recorded run along it, and two races.

    python tools/example.py [FOLDER]

Everything is as `disback.widgets.Race` has it by default: the ring, a far start, seed 0; one thread. The
races differ in how fast the fake score learns: as fast as the student, and four times as fast. Takes a
minute. Without FOLDER, into `examples/`, and the README's picture of the path is drawn anew."""
import shutil
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from disback.mismatch import MismatchRecorder
from disback.widgets import EXAMPLES, PathStepper, Race, example

ROOT = Path(__file__).parents[1]


def main(folder):
    torch.set_num_threads(1)
    teachers, recorder = {}, None
    for (words, name), fake in zip(EXAMPLES.items(), (1., 4.)):
        race = Race(fake=fake, teachers=teachers)
        for _ in tqdm(race, f"the fake score learns {words}", disable=None):
            if fake != 1. or not race.racers: continue
            run = race.racers[0].run
            recorder = recorder or MismatchRecorder(teachers["ring"], every=run.n_steps // 30, n=128,
                                                    keep_samples=True)
            recorder(run)
        race.recording.save(folder / f"{name}.safetensors", most=128)
        if fake != 1.: continue
        shutil.rmtree(folder / "path", ignore_errors=True)
        race.path.save(folder / "path")
    recorder.save(folder / "mismatch.safetensors")


def picture(file):
    """Draw what the README shows: the path at its middle node."""
    shown = example()
    stepper = PathStepper(shown.path, shown.student, shown.data)
    stepper.controls["node"].value = 2
    stepper.show()
    file.write_bytes(stepper.image.value)


if __name__ == "__main__":
    if sys.argv[1:]: main(Path(sys.argv[1]))
    else:
        main(ROOT / "examples")
        picture(ROOT / "docs" / "images" / "path_stepper.png")
