"""Download of a base model in a process of its own, which needs no torch.

``python -m sdlora.jobs.model_download`` is that process.
"""

import sys
from typing import Any

from sdlora.events import OnEvent, Result
from sdlora.jobs.job_process import JobProcess, serve_job


class DownloadJob(JobProcess):
    """Download of a base model from the hub into its cache; ``model`` holds settings of ``Model``.

    The result is the folder. A download that was stopped goes on where it ended.
    """

    STOPPED = "Stopped; what has arrived is kept, and the next download goes on from there."

    def __init__(self, **model: Any):
        super().__init__(["-m", "sdlora.jobs.model_download"], model)


def _download(request: dict[str, Any], report: OnEvent) -> None:
    from sdlora.families.hub_download import download_model
    from sdlora.families.settings import Model

    report(Result(value=str(download_model(Model.model_validate(request), report))))


def main() -> int:
    return serve_job(_download)


if __name__ == "__main__":
    sys.exit(main())
