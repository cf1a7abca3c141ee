"""The page's endpoints that make adapters of adapters and models. They wait until it is made."""

from typing import Any, TypedDict

from sdlora.adapters.targets import ALL_LAYERS
from sdlora.api.adapter_jobs import LibraryJob, extract_job, merge_job, resize_job
from sdlora.api.adapters import DTYPES
from sdlora.api.models import resolve_base
from sdlora.errors import ConfigError
from sdlora.ui.app_state import AppState


class MadeAdapter(TypedDict):
    """An adapter that has come into the library; ``kept`` is the share of a resized one's energy, else None."""

    adapter: str
    layers: int
    ranks: list[int]
    kept: float | None
    proof: str
    notes: list[str]


class ToolEndpoints:
    """What a program may have made on ``app``."""

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
        """Combine adapters into one, which comes into the library.

        Args:
            adapters: Two or more by name, with their scales, such as {"mystyle": 1.0, "mycat": 0.7}.
            name: What to call it; left empty, after theirs.
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
        """Give an adapter another rank; any kind becomes a LoRA, which comes into the library under a name of its own.

        Args:
            adapter: By name.
            name: What to call it; left empty, after the adapter.
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
        """Make an adapter of the difference of two models; it comes into the library.

        Args:
            base: The model that the other was made from.
            tuned: The model that the adapter leads to.
            name: What to call it; left empty, after the tuned model.
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

    def _run_job(self, making: LibraryJob) -> MadeAdapter:
        name, answer = making.finish(), making.result
        self.app.refresh()
        return MadeAdapter(
            adapter=name, layers=answer["layers"], ranks=answer["ranks"], kept=answer.get("kept"),
            proof=answer["proof"], notes=making.notices,
        )  # fmt: skip


def _dtype(dtype: str) -> str:
    if dtype not in DTYPES:
        raise ConfigError(f"dtype = {dtype!r}: give one of {', '.join(DTYPES)}")
    return dtype
