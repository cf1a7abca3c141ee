"""Real processes that start within milliseconds: a parent that has imported everything forks one for each command.

Starting the process of a run takes seconds, nearly all of them spent on imports. A forked process is as real (it can be
killed and has its own locks, limits and signal handlers), and a test or a soak can afford hundreds of them.
``ForkServer.start("sdlora.jobs.training_worker", [folder], log)`` is ``python -m sdlora.jobs.training_worker folder``.
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

from tests.support.file_faults import FileFault, preload

UNPRIVILEGED_UID = 65534
"""User id of ``nobody``, who owns no files."""
PRELOADED = (
    "sdlora.cli.main", "sdlora.api.grids", "sdlora.jobs.training_worker",
    "sdlora.inference.inline_inference", "sdlora.training.trainer",
    "sdlora.generation.studio", "diffusers", "transformers", "transformers.models.clip.modeling_clip", "peft",
    "accelerate", "diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "diffusers.schedulers.scheduling_pndm",
    "torch._dynamo", "PIL.PngImagePlugin", "encodings.utf_8_sig", "encodings.idna", "tomli_w",
)  # fmt: skip
"""Modules that the parent imports before it forks."""


class ForkedProcess:
    """A process that a fork server started."""

    def __init__(self, pid: int, read_number: Callable[[], int]):
        self.pid = pid
        self._read_number = read_number
        self._exit_code: int | None = None

    def send(self, number: int) -> None:
        """Send signal ``number``; call it before the next process starts. A process that has ended ignores it."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for the end; return the exit code, or -n if signal n killed the process."""
        if self._exit_code is None:
            self._exit_code = self._read_number()
        return self._exit_code


class ForkServer:
    """The parent, in a process of its own. It runs one command at a time: wait for one, then start the next."""

    def __init__(self, shim: Path | None = None) -> None:
        """``shim``, as ``build_shim`` makes it, lets processes have faults of the file system."""
        self.has_file_faults = shim is not None
        environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **os.environ, **preload(shim)}
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_server"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        self._read_number()  # It has imported everything.

    def start(
        self, module: str, arguments: Sequence[str], log: Path, *,
        failpoint: str = "", file_size_limit: int = 0, unprivileged: bool = False, file_fault: FileFault | None = None,
    ) -> ForkedProcess:  # fmt: skip
        """Fork a process that runs ``main()`` of ``module`` and appends what it prints to ``log``.

        ``failpoint`` arms a failpoint. ``file_size_limit`` limits files to that many bytes, like a full disk.
        ``unprivileged`` drops root's right to write the files of other users. ``file_fault`` lets a call of the system
        fail.
        """
        command = dict(
            module=module, arguments=[*arguments], log=str(log), failpoint=failpoint, file_size_limit=file_size_limit,
            unprivileged=unprivileged, file_fault=file_fault.values() if file_fault else None,
        )  # fmt: skip
        assert self._parent.stdin is not None
        self._parent.stdin.write(json.dumps(command).encode() + b"\n")
        self._parent.stdin.flush()
        return ForkedProcess(self._read_number(), self._read_number)

    def close(self) -> None:
        self._parent.kill()
        self._parent.wait()

    def _read_number(self) -> int:
        assert self._parent.stdout is not None
        return int(self._parent.stdout.readline())


def serve() -> None:
    """Fork a process for each command on standard input; print its pid, and later its exit code."""
    from sdlora.jobs.measurement import torch_version

    for name in PRELOADED:
        import_module(name)
    torch_version()  # Somebody else's environment may be hidden from the user that a child becomes.
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


def _run(
    module: str, arguments: list[str], log: str, failpoint: str, file_size_limit: int, unprivileged: bool,
    file_fault: dict[str, Any] | None,
) -> None:  # fmt: skip
    """Run the command in the child, and end the child."""
    from sdlora import failpoints

    code: Any = 1
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for number, handle in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
            os.dup2(handle, number)
        sys.argv = [module, *arguments]
        if failpoint:
            failpoints.arm(failpoint)
        if file_size_limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, resource.RLIM_INFINITY))
        if unprivileged and os.geteuid() == 0:
            os.seteuid(UNPRIVILEGED_UID)
        main = import_module(module).main
        if file_fault:
            FileFault(**file_fault).arm()
        code = main()
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
