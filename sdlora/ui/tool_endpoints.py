"""Endpoints of the page that make adapters from adapters and models, and wait for them."""

from typing import Any, TypedDict

from sdlora.adapters.targets import ALL_LAYERS
from sdlora.api.adapter_jobs import LibraryJob, extract_job, merge_job, resize_job
from sdlora.api.adapters import DTYPES
from sdlora.api.models import resolve_base
from sdlora.errors import ConfigError
from sdlora.ui.app_state import AppState


class MadeAdapter(TypedDict):
    """A new adapter of the library; ``kept`` is the share of a resized one's energy, else None."""

    adapter: str
    layers: int
    ranks: list[int]
    kept: float | None
    proof: str
    notes: list[str]


class ToolEndpoints:
    """Functions that programs may call."""

    def __init__(self, app: AppState):
        self.app = app

    def merge(
        self,
        adapters: dict[str, float],
        name: str = "",
        rank: int | None = None,
        energy: float | None = None,
        base: str = "",
        dtype: str = "fp32",
    ) -> MadeAdapter:
        """Combine adapters into one, which goes to the library.

        Args:
            adapters: Two or more by name, with their scales, such as {"mystyle": 1.0, "mycat": 0.7}.
            name: Name of the result; left empty, after theirs.
            rank: The rank to keep at most; left out, all of the sum is kept.
            energy: The share of the squared norm to keep, such as 0.95, in as low a rank as holds it.
            base: For DoRA and (IA)³ the base model; left empty, what the first was trained on.
            dtype: "fp32", "fp16" or "bf16".
        """
        found = [(self.app.adapter(adapter), scale) for adapter, scale in adapters.items()]
        named = [(adapter.name, adapter.path, scale) for adapter, scale in found]
        own = next((adapter.base for adapter, _ in found if adapter.base), "")
        settled = self._base(base or own)
        return self._run_job(
            merge_job(self.app.library, named, name, rank, energy, settled, _dtype(dtype)),
        )

    def resize(
        self,
        adapter: str,
        name: str = "",
        rank: int | None = None,
        energy: float | None = None,
        base: str = "",
        dtype: str = "fp32",
    ) -> MadeAdapter:
        """Change the rank of an adapter of any kind; the result is a LoRA, which goes to the library.

        Args:
            adapter: Name of the adapter.
            name: Name of the result; left empty, after the adapter.
            rank: The rank to keep at most.
            energy: The share of the squared norm to keep, such as 0.95, in as low a rank as holds it.
            base: For DoRA and (IA)³ the base model; left empty, what it was trained on.
            dtype: "fp32", "fp16" or "bf16".
        """
        found = self.app.adapter(adapter)
        settled, own = self._base(base or found.base), (found.name, found.path)
        return self._run_job(resize_job(self.app.library, own, name, rank, energy, settled, _dtype(dtype)))

    def extract(
        self,
        base: str,
        tuned: str,
        name: str = "",
        rank: int | None = None,
        energy: float | None = None,
        targets: str = ALL_LAYERS,
        text_encoder: bool = True,
        dtype: str = "fp32",
    ) -> MadeAdapter:
        """Make an adapter from the difference of two models; it goes to the library.

        Args:
            base: The model that the other was finetuned from.
            tuned: The finetuned model.
            name: Name of the result; left empty, after the tuned model.
            rank: The rank to keep at most.
            energy: The share of the squared norm to keep, such as 0.95, in as low a rank as holds it.
            targets: Which layers, as the setting adapter.targets.
            text_encoder: Whether the text encoders are compared too.
            dtype: "fp32", "fp16" or "bf16".
        """
        models = self._base(base), self._base(tuned)
        what: dict[str, Any] = {"targets": targets, "text_encoder": text_encoder, "dtype": _dtype(dtype)}
        return self._run_job(extract_job(self.app.library, *models, name, rank, energy, **what))

    def _base(self, base: str) -> str:
        return resolve_base(base, self.app.data_dir) if base else ""

    def _run_job(self, job: LibraryJob) -> MadeAdapter:
        name, result = job.finish(), job.result
        self.app.refresh()
        return MadeAdapter(
            adapter=name, layers=result["layers"], ranks=result["ranks"], kept=result.get("kept"),
            proof=result["proof"], notes=job.notices,
        )  # fmt: skip


def _dtype(dtype: str) -> str:
    if dtype not in DTYPES:
        raise ConfigError(f"dtype = {dtype!r}: give one of {', '.join(DTYPES)}")
    return dtype
