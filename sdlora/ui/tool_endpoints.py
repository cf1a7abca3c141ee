"""Endpoints of the page that wait for a tool: adapters made from adapters and models."""

from typing import Any, TypedDict

from sdlora.api.adapter_jobs import LibraryJob, compare_job, extract_job, merge_job, resize_job
from sdlora.api.editing import EditSettings, ExportSettings, ExtractSettings, MergeSettings, RankLimit
from sdlora.api.models import resolve_base
from sdlora.ui.app_state import AppState
from sdlora.ui.endpoint_arguments import takes_settings

TRUNCATION = (*RankLimit.model_fields, "dtype")
"""Settings of the tools that change an adapter's rank."""
METHOD = ("method", "density", "seed", "protect")
"""Settings of how adapters are merged."""


class MadeAdapter(TypedDict):
    """A new adapter of the library; ``kept`` is the share of energy in a limited rank, else None."""

    adapter: str
    layers: int
    ranks: list[int]
    kept: float | None
    proof: str
    notes: list[str]


class PairOverlap(TypedDict):
    """Overlap of two adapters: in a sentence, and figures for all layers and for each block."""

    adapters: list[str]
    sentence: str
    blocks: list[dict[str, Any]]


class ToolEndpoints:
    """Functions that programs may call."""

    def __init__(self, app: AppState):
        self.app = app

    @takes_settings(
        MergeSettings, ExportSettings, names=(*TRUNCATION, *METHOD), first=("adapters", "name", "rank", "energy")
    )
    def merge(self, adapters: dict[str, float], name: str = "", base: str = "", **settings: Any) -> MadeAdapter:
        """Combine adapters into one, which goes to the library.

        Args:
            adapters: Two or more by name, with their scales, such as {"mystyle": 1.0, "mycat": 0.7}.
            name: Name of the result; left empty, after theirs.
            base: For DoRA and (IA)³ the base model; left empty, what the first was trained on.
        """
        found = [(self.app.adapter(adapter), scale) for adapter, scale in adapters.items()]
        named = [(adapter.name, adapter.path, scale) for adapter, scale in found]
        own = next((adapter.base for adapter, _ in found if adapter.base), "")
        dtype, merge = settings.pop("dtype"), MergeSettings.checked(base=self._base(base or own), **settings)
        return self._run_job(merge_job(self.app.library, named, merge, name, dtype))

    def overlap(self, adapters: list[str], base: str = "") -> list[PairOverlap]:
        """Tell how much each two of some adapters change the same directions of the same layers.

        Args:
            adapters: Two or more by name.
            base: For DoRA and (IA)³ the base model; left empty, what the first was trained on.
        """
        found = [self.app.adapter(adapter) for adapter in adapters]
        own = next((adapter.base for adapter in found if adapter.base), "")
        job = compare_job([(adapter.name, adapter.path) for adapter in found], self._base(base or own))
        job.finish()
        return [
            PairOverlap(adapters=pair["adapters"], sentence=pair["sentence"], blocks=pair["blocks"])
            for pair in job.result
        ]

    @takes_settings(RankLimit, ExportSettings, names=TRUNCATION, first=("adapter", "name", "rank", "energy"))
    def resize(self, adapter: str, name: str = "", base: str = "", **settings: Any) -> MadeAdapter:
        """Change the rank of an adapter of any kind; the result is a LoRA, which goes to the library.

        Args:
            adapter: Name of the adapter.
            name: Name of the result; left empty, after the adapter.
            base: For DoRA and (IA)³ the base model; left empty, what it was trained on.
        """
        found = self.app.adapter(adapter)
        edit, dtype = self._edit(base or found.base, **settings)
        return self._run_job(resize_job(self.app.library, (found.name, found.path), edit, name, dtype))

    @takes_settings(ExtractSettings, ExportSettings, names=(*ExtractSettings.model_fields, "dtype"))
    def extract(self, base: str, tuned: str, name: str = "", **settings: Any) -> MadeAdapter:
        """Make an adapter from the difference of two models; it goes to the library.

        Args:
            base: The model that the other was finetuned from.
            tuned: The finetuned model.
            name: Name of the result; left empty, after the tuned model.
        """
        models, dtype = (self._base(base), self._base(tuned)), settings.pop("dtype")
        extract = ExtractSettings.checked(**settings)
        return self._run_job(extract_job(self.app.library, *models, extract, name, dtype))

    def _edit(self, base: str, dtype: str, **limit: Any) -> tuple[EditSettings, str]:
        return EditSettings.checked(base=self._base(base), **limit), dtype

    def _base(self, base: str) -> str:
        return resolve_base(base, self.app.data_dir) if base else ""

    def _run_job(self, job: LibraryJob) -> MadeAdapter:
        name, result = job.finish(), job.result
        self.app.refresh()
        return MadeAdapter(
            adapter=name, layers=result["layers"], ranks=result["ranks"], kept=result.get("kept"),
            proof=result["proof"], notes=job.notices,
        )  # fmt: skip
