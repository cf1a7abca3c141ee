"""Real processes that start in a blink: a parent that has imported everything forks one for each command.

A process of a run costs seconds to start, nearly all of them imports. Forked from here it is as real (it can be killed,
has its own locks, limits and signal handlers), and a test or a soak can afford hundreds of them.
``Nursery.start("sdlora.jobs.training_worker", [folder], log)`` is ``python -m sdlora.jobs.training_worker folder``.
"""

import json
import os
import resource
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

NOBODY = 65534
"""A user who owns nothing."""
IMPORTED = (
    "sdlora.cli.main", "sdlora.service", "sdlora.jobs.training_worker",
    "sdlora.inference.inline_inference", "sdlora.training.trainer",
    "sdlora.generation.studio", "diffusers", "transformers", "transformers.models.clip.modeling_clip", "peft",
    "accelerate", "diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "diffusers.schedulers.scheduling_pndm",
    "torch._dynamo", "PIL.PngImagePlugin", "encodings.utf_8_sig", "encodings.idna", "tomli_w",
)  # fmt: skip
"""By the parent: whatever a process would import first of all."""


class Process:
    """A process of a nursery."""

    def __init__(self, pid: int, answer: Callable[[], int]):
        self.pid = pid
        self._answer = answer
        self._code: int | None = None

    def send(self, number: int) -> None:
        """Send it signal ``number``, in vain if it has ended. To be done before the next one starts."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, or -n if signal n killed it, once it has ended."""
        if self._code is None:
            self._code = self._answer()
        return self._code


class Nursery:
    """The parent, in a process of its own. One command at a time: wait for one before the next is started."""

    def __init__(self) -> None:
        environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **os.environ}
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_server"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        self._answer()  # It has imported everything.

    def start(
        self, module: str, arguments: Sequence[str], log: Path, fault: str = "", room: int = 0, nobody: bool = False
    ) -> Process:
        """Fork a process that runs ``main()`` of ``module``; what it prints goes to the end of ``log``.

        ``fault`` arms a point; ``room`` is how many bytes a file may have, as on a full disk; ``nobody`` takes away
        the right to write what other users own, which root has.
        """
        asked = dict(module=module, arguments=[*arguments], log=str(log), fault=fault, room=room, nobody=nobody)
        assert self._parent.stdin is not None
        self._parent.stdin.write(json.dumps(asked).encode() + b"\n")
        self._parent.stdin.flush()
        return Process(self._answer(), self._answer)

    def close(self) -> None:
        self._parent.kill()
        self._parent.wait()

    def _answer(self) -> int:
        assert self._parent.stdout is not None
        return int(self._parent.stdout.readline())


def serve() -> None:
    """Fork what is asked for on standard input; say its number, and later how it ended."""
    for name in IMPORTED:
        import_module(name)
    print(0, flush=True)
    pid = 0
    for line in sys.stdin:
        if pid:  # Only now may its number be given to another process.
            os.waitpid(pid, 0)
        pid = os.fork()
        if pid == 0:
            _run(**json.loads(line))
        print(pid, flush=True)
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert end is not None
        print(end.si_status if end.si_code == os.CLD_EXITED else -end.si_status, flush=True)


def _run(module: str, arguments: list[str], log: str, fault: str, room: int, nobody: bool) -> None:
    """In the child: be that process, and end."""
    from sdlora import failpoints

    code: Any = 1
    try:
        os.setsid()
        printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for number, handle in enumerate((os.open(os.devnull, os.O_RDONLY), printed, printed)):
            os.dup2(handle, number)
        sys.argv = [module, *arguments]
        if fault:
            failpoints.arm(fault)
        if room:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        if nobody and os.geteuid() == 0:
            os.seteuid(NOBODY)
        code = import_module(module).main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        with suppress(OSError):
            traceback.print_exc()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    serve()
