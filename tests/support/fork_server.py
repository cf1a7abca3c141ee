"""Real processes that start within milliseconds: a parent that has imported everything forks one for each command.

Starting the process of a run takes seconds, nearly all of them spent on imports. A forked process is as real (it can be
killed and has its own locks, limits and signal handlers), and a test or a soak can afford hundreds of them.
``ForkServer.start("sdlora.jobs.training_worker", [folder], log)`` is ``python -m sdlora.jobs.training_worker folder``.

The parent listens at a socket. Each connection is one process: its command and its standard streams go in, its number
and later its exit code come out. Forked processes may connect too, and so start processes themselves.
"""

import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.file_faults import FileFault, preload
from tests.support.privileges import obey_permissions

PRELOADED = (
    "sdlora.cli.main", "sdlora.api.grids", "sdlora.jobs.training_worker",
    "sdlora.inference.inline_inference", "sdlora.inference.inference_worker", "sdlora.jobs.tool_process",
    "sdlora.jobs.tool_jobs", "sdlora.editing.bake_folder", "sdlora.training.trainer",
    "sdlora.generation.studio", "diffusers", "transformers", "transformers.models.clip.modeling_clip", "peft",
    "accelerate", "diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "diffusers.schedulers.scheduling_pndm",
    "torch._dynamo", "PIL.PngImagePlugin", "encodings.utf_8_sig", "encodings.idna", "tomli_w",
)  # fmt: skip
"""Modules that the parent imports before it forks."""


class ForkedProcess:
    """A process that a fork server started."""

    def __init__(self, connection: socket.socket):
        self._answers = connection.makefile("rb", buffering=0)  # Else ``select`` would not see what was read ahead.
        self._connection = connection
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def send(self, number: int) -> None:
        """Send signal ``number``. A process that has ended ignores it."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, as ``kill -9`` does."""
        self.send(signal.SIGKILL)

    def poll(self) -> int | None:
        """Return the exit code, or -n if signal n killed the process; None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return what ``poll`` does then. Raises TimeoutExpired."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            self.returncode = int(self._answers.readline())
            self._answers.close()
            self._connection.close()  # Only now may its number be given to another process.
        return self.returncode


class RunningProcess(NamedTuple):
    """A process that a fork server has started, and that has not ended."""

    pid: int
    module: str
    arguments: list[str]


def fork(
    address: str, module: str, arguments: Sequence[str], streams: Sequence[int] = (), **options: Any
) -> ForkedProcess:
    """Fork a process that runs ``main()`` of ``module``, from the server that listens at ``address``.

    ``streams`` are its standard input, output and errors. ``options`` are those of ``ForkServer.start``.
    """
    return ForkedProcess(_ask(address, {"module": module, "arguments": [*arguments], **options}, streams))


def _ask(address: str, command: Mapping[str, Any], streams: Sequence[int] = ()) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    message = json.dumps(command).encode() + b"\n"
    sent = socket.send_fds(connection, [message], [*streams])
    if sent < len(message):  # Else it may have been answered already.
        connection.sendall(message[sent:])
    return connection


class ForkServer:
    """The parent, in a process of its own."""

    def __init__(self, shim: Path | None = None) -> None:
        """``shim``, as ``build_shim`` makes it, lets processes have faults of the file system."""
        self.has_file_faults = shim is not None
        environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **os.environ, **preload(shim)}
        self._folder = tempfile.mkdtemp(prefix="sdlora-fork-")
        self.address = f"{self._folder}/socket"
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_server", self.address],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert self._parent.stdout is not None
        self._parent.stdout.readline()  # It has imported everything.

    def start(
        self, module: str, arguments: Sequence[str], log: Path, *,
        failpoint: str = "", file_size_limit: int = 0, unprivileged: bool = False, file_fault: FileFault | None = None,
        pauses: int = 0,
    ) -> ForkedProcess:  # fmt: skip
        """Fork a process that runs ``main()`` of ``module`` and appends what it prints to ``log``.

        ``failpoint`` arms a failpoint. ``file_size_limit`` limits files to that many bytes, like a full disk.
        ``unprivileged`` lets the permissions of files hold for root too. ``file_fault`` lets a call of the system fail.
        ``pauses`` is the seed of pauses before changes of files (``folder_siege.pause_before_acts``).
        """
        limits = dict(
            failpoint=failpoint, file_size_limit=file_size_limit, unprivileged=unprivileged, pauses=pauses,
            file_fault=file_fault.values() if file_fault else None,
        )  # fmt: skip
        return fork(self.address, module, arguments, log=str(log), **limits)

    def running(self) -> list[RunningProcess]:
        """Return all processes that run, whoever started them."""
        with _ask(self.address, {}) as connection, connection.makefile("rb") as answer:
            return [RunningProcess(*fields) for fields in json.loads(answer.readline())]

    def close(self) -> None:
        """End it, and all processes that it has started."""
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait()
        shutil.rmtree(self._folder)


class _Parent:
    """The server's side."""

    def __init__(self, address: str):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(address)
        self.listener.listen(64)
        self.processes: dict[int, RunningProcess] = {}
        self.starters: dict[socket.socket, int] = {}
        """Connections, and the processes that were started through them."""
        self.ended: set[int] = set()
        """Processes that have ended, and whose numbers stay taken until their starters know."""
        self.wakes, wake = os.pipe()
        for end in (self.wakes, wake):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Serve until the program that started this one has ended; then end all processes."""
        while True:
            ready, _, _ = select.select([0, self.listener, self.wakes, *self.starters], [], [])
            if 0 in ready:
                for pid in self.processes.keys() - self.ended:
                    os.kill(pid, signal.SIGKILL)
                return
            if self.wakes in ready:
                os.read(self.wakes, 4096)
            for connection in [each for each in ready if each in self.starters]:  # Closed: told, or ended itself.
                del self.starters[connection]
                connection.close()
            for pid in list(self.processes):
                self._look_after(pid)
            if self.listener in ready:
                self._answer(self.listener.accept()[0])

    def _look_after(self, pid: int) -> None:
        """Tell the starter of a process that has ended, and forget the process once there is none to tell."""
        starter = next((connection for connection, started in self.starters.items() if started == pid), None)
        if pid not in self.ended:
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if end is None:
                return
            self.ended.add(pid)
            code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
            if starter is not None:
                with suppress(BrokenPipeError):
                    starter.sendall(f"{code}\n".encode())
        if starter is None:
            os.waitpid(pid, 0)
            del self.processes[pid]
            self.ended.remove(pid)

    def _answer(self, connection: socket.socket) -> None:
        message, streams, _, _ = socket.recv_fds(connection, 1 << 16, 3)
        while message and not message.endswith(b"\n"):
            message += (more := connection.recv(1 << 16))
            if not more:
                message = b""
        if not message:  # Who asked has been killed.
            connection.close()
            for stream in streams:
                os.close(stream)
            return
        command = json.loads(message)
        if not command:
            alive = [process for pid, process in self.processes.items() if pid not in self.ended]
            with suppress(BrokenPipeError):
                connection.sendall(json.dumps(alive).encode() + b"\n")
            connection.close()
            return
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for inherited in (self.listener, connection, *self.starters):
                inherited.close()
            _run(streams, **command)
        for stream in streams:
            os.close(stream)
        self.starters[connection] = pid
        self.processes[pid] = RunningProcess(pid, command["module"], command["arguments"])
        with suppress(BrokenPipeError):
            connection.sendall(f"{pid}\n".encode())


def _run(
    streams: Sequence[int], module: str, arguments: list[str], log: str = "", failpoint: str = "",
    file_size_limit: int = 0, unprivileged: bool = False, file_fault: dict[str, Any] | None = None, pauses: int = 0,
    environment: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Run the command in the child, and end the child."""
    from sdlora import failpoints
    from tests.support.folder_siege import pause_before_acts

    code: Any = 1
    try:
        os.setsid()
        if not streams:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            streams = (os.open(os.devnull, os.O_RDONLY), output, output)
        for number, handle in enumerate(streams):
            os.dup2(handle, number)
        for handle in {*streams}:
            os.close(handle)
        os.environ.update(environment or {})
        sys.argv = [module, *arguments]
        if failpoint:
            failpoints.arm(failpoint)
        if pauses:
            pause_before_acts(pauses)
        if file_size_limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, resource.RLIM_INFINITY))
        if unprivileged:
            obey_permissions()
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


def main() -> None:
    for name in PRELOADED:
        import_module(name)
    parent = _Parent(sys.argv[1])
    print(0, flush=True)
    parent.serve()


if __name__ == "__main__":
    main()
