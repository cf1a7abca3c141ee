"""The protocol of a job in a process of its own: a request goes in as JSON, events come out as lines of JSON.

``JobProcess`` is the parent's side and needs no torch; ``serve_job`` is the process's side.
"""

import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar

from sdlora.errors import FileError, SdloraError, error_class
from sdlora.events import Event, Failed, Finished, Notice, OnEvent, Result, ignore, read_events
from sdlora.python_process import environment
from sdlora.warning_capture import capture_warnings


class JobProcess:
    """A job that runs as ``python ARGUMENTS``. Iterating starts it and yields its events; leaving the loop ends it.

    Afterwards ``result`` and ``notices`` hold what it reported. Iterating raises the error that the job failed with, in
    the class that its exit code names, and FileError with ``STOPPED`` if the job was stopped.
    """

    STOPPED: ClassVar[str] = "Stopped; nothing was written."
    """Message of that FileError."""

    def __init__(self, arguments: Sequence[str], request: Mapping[str, Any]):
        self.arguments, self.request = arguments, dict(request)
        self.result: Any = None
        self.notices: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def __iter__(self) -> Generator[Event]:
        process = self._process = subprocess.Popen(  # In this program's session: Ctrl-C ends it too.
            [sys.executable, *self.arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=environment(),
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        failed: Failed | None = None
        try:
            with suppress(BrokenPipeError), process.stdin as stdin:  # It may have ended already.
                stdin.write(json.dumps(self.request, default=str).encode())
            for event in read_events(process.stdout):
                match event:
                    case Result():
                        self.result = event.value
                    case Notice():
                        self.notices.append(event.message)
                    case Failed():
                        failed = event
                yield event
            code = process.wait()
            if self._stopped:
                raise FileError(self.STOPPED)
            if failed is not None:
                raise error_class(failed.exit_code)(failed.message)
            if code:
                raise FileError(f"the process ended (exit code {code}); try again")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def finish(self, on_event: OnEvent = ignore) -> Any:
        """Run the job to its end, and return its result."""
        for event in self:
            on_event(event)
        return self.result

    def stop(self) -> None:
        """End the process, if it runs."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()


def serve_job(work: Callable[[Any, OnEvent], object]) -> int:
    """Do ``work`` on the request from standard input, and report to standard output; return the exit code.

    ``work`` reports its progress and results itself. This package's warnings are reported as notices.
    """
    request = json.loads(sys.stdin.buffer.read())
    output, sys.stdout = sys.stdout, sys.stderr  # What a library prints must not come between the events.

    def report(event: Event) -> None:
        print(event.to_json(), file=output, flush=True)

    return run_job(lambda: work(request, report), report)


def run_job(
    work: Callable[[], object],
    report: OnEvent,
    translate: Callable[[Exception], SdloraError | None] = lambda error: None,
) -> int:
    """Do ``work``, report its notices and how it ended; return the exit code.

    ``translate`` turns an exception of a library into an error for the user, or returns None for a bug.
    """
    try:
        with capture_warnings(lambda message: report(Notice(message=message))):
            work()
    except Exception as error:
        known = error if isinstance(error, SdloraError) else translate(error)
        if known is None:
            traceback.print_exc()
        message = str(known) if known else f"{type(error).__name__}: {error} (a bug)"
        code = known.exit_code if known else 1
        report(Failed(message=message, exit_code=code))
        return code
    report(Finished())
    return 0
